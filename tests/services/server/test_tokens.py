"""Who is let in: the tokens file, the interceptor, rotation."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from salon.client.channel import connect
from salon.errors import InvalidRequest, Unauthenticated, from_rpc_error
from salon.security import Security
from salon.tokens import new_token
from services.scoring.metrics import Metrics
from services.server import reloading
from services.server.tokens import TokenInterceptor, Tokens

METHODS = {"Echo": "unary_unary", "Import": "stream_unary", "Export": "unary_stream"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("")
    path.chmod(0o644)
    return path


@pytest.fixture
def token(file):
    value, line = new_token("laptop")
    file.write_text(f"# people\n\n{line}\n")
    return value


@pytest.fixture
def at_once(monkeypatch):
    """Files are looked at every time."""
    monkeypatch.setattr(reloading, "CHECK_SECONDS", 0.0)


class Echo(grpc.GenericRpcHandler):
    """Answers with the caller's name, and remembers every message it was sent."""

    def __init__(self):
        self.messages = []

    def service(self, handler_call_details):
        kind = METHODS[handler_call_details.method.rpartition("/")[2]]
        return getattr(grpc, f"{kind}_rpc_method_handler")(getattr(self, kind))

    def unary_unary(self, message, _context):
        self.messages.append(message)
        return structlog.contextvars.get_contextvars().get("caller", "").encode()

    def stream_unary(self, messages, context):
        return self.unary_unary(b"".join(messages), context)

    def unary_stream(self, message, context):
        yield self.unary_unary(message, context)


class Guarded:
    """A server behind the interceptor."""

    def __init__(self, file):
        self.metrics = Metrics(["echo"])
        self.echo = Echo()
        self.server = grpc.server(
            ThreadPoolExecutor(2),
            handlers=[self.echo],
            interceptors=[TokenInterceptor(Tokens(file), self.metrics)],
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self.server)
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def call(self, token="", message=b"", **options):
        with connect(self.target, security=Security(token=token)) as channel:
            return channel.unary_unary("/x/Echo")(message, timeout=10, **options).decode()

    def refuses(self, token="", **options):
        with pytest.raises(grpc.RpcError) as caught:
            self.call(token, **options)
        error = from_rpc_error(caught.value, self.target)
        assert type(error) is Unauthenticated
        return str(error)

    def refusals(self):
        labels = {"reward": "", "code": "UNAUTHENTICATED"}
        return self.metrics.registry.get_sample_value("salon_inference_request_total", labels)


@pytest.fixture
def guarded(file, token):
    guarded = Guarded(file)
    yield guarded
    guarded.server.stop(0).wait()


def test_a_known_token_is_let_in_under_its_name(guarded, token):
    assert guarded.call(token) == "laptop"
    with connect(guarded.target, security=Security(token=token)) as channel:
        assert list(channel.unary_stream("/x/Export")(b"", timeout=10)) == [b"laptop"]
        assert channel.stream_unary("/x/Import")(iter([b"a", b"b"]), timeout=10) == b"laptop"
    assert guarded.echo.messages == [b"", b"", b"ab"]


def test_everyone_else_is_refused_before_the_message_is_read(guarded, token):
    assert "the call has no authorization" in guarded.refuses(message=bytes(1_000_000))
    for unknown in ("x", token[:-1], token + "x", token.swapcase()):
        assert "does not know this bearer token" in guarded.refuses(unknown)
    assert guarded.echo.messages == []
    assert guarded.refusals() == 5


@pytest.mark.parametrize("values", [["Basic {}"], ["{}"], ["Bearer"], ["Bearer {}", "Bearer {}"]])
def test_only_one_bearer_token_will_do(guarded, token, values):
    metadata = [("authorization", value.format(token)) for value in values]
    assert "send" in guarded.refuses(metadata=metadata)


def test_the_scheme_is_case_insensitive_as_http_has_it(guarded, token):
    assert guarded.call(metadata=[("authorization", f"bearer {token}")]) == "laptop"


def test_streams_are_refused_too(guarded):
    with connect(guarded.target) as channel:
        for call in (
            lambda: list(channel.unary_stream("/x/Export")(b"", timeout=10)),
            lambda: channel.stream_unary("/x/Import")(iter([b"a"] * 1000), timeout=10),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert guarded.echo.messages == []


def test_health_needs_no_token(guarded):
    with grpc.insecure_channel(guarded.target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_strangers_do_not_wait_behind_callers_nor_callers_behind_them(guarded, token):
    go_on = threading.Event()
    guarded.echo.unary_unary = lambda *_: b"late" if go_on.wait(30) else b"never"
    with connect(guarded.target, security=Security(token=token)) as channel:
        busy = [channel.unary_unary("/x/Echo").future(b"", timeout=30) for _ in range(4)]
        guarded.refuses()
        go_on.set()
        assert {call.result() for call in busy} == {b"late"}


def test_tokens_rotate_without_a_restart(at_once, guarded, file, token):
    second, line = new_token("laptop-2")
    file.write_text(file.read_text() + line + "\n")
    assert (guarded.call(second), guarded.call(token)) == ("laptop-2", "laptop")
    file.write_text(line + "\n")
    guarded.refuses(token)
    assert guarded.call(second) == "laptop-2"


@pytest.mark.parametrize("content", ["sha256:abc laptop", None])
def test_a_broken_replacement_changes_nothing_and_is_logged_once(
    at_once, guarded, file, token, content
):
    with capture_logs() as logs:
        file.unlink()
        if content is not None:
            file.write_text(content)
            file.chmod(0o644)
        assert [guarded.call(token) for _ in range(3)] == ["laptop"] * 3
    assert [(log["log_level"], str(file) in log["reason"]) for log in logs] == [("error", True)]


@pytest.mark.parametrize("content", ["", "# nobody\n"])
def test_when_the_last_token_is_taken_out_nobody_is_let_in(at_once, guarded, file, token, content):
    with capture_logs() as logs:
        file.write_text(content)
        assert "does not know this bearer token" in guarded.refuses(token)
    assert ("warning", str(file)) in [(log["log_level"], log.get("file")) for log in logs]
    second, line = new_token("laptop-2")
    file.write_text(line)
    assert guarded.call(second) == "laptop-2"


def test_files_are_looked_at_once_a_second_at_most(file, token):
    tokens = Tokens(file)
    file.write_text(new_token("other")[1])
    assert tokens.name_of(token) == "laptop"


DIGEST = hashlib.sha256(b"a").hexdigest()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# nobody\n", "has no token in it"),
        (f"sha256:{DIGEST}", "line 1 is not"),
        (f"\nsha256:{DIGEST[1:]} a", "line 2 is not"),
        (f"sha256:{DIGEST} two words", "line 1 is not"),
        (f"sha256:{DIGEST} a\nsha256:{DIGEST} b", "line 2: b or its hash is there already"),
        (f"sha256:{DIGEST} a\nsha256:{'0' * 64} a", "line 2: a or its hash is there already"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(file, content, words):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequest, match=f"{file}.*{words}"):
        Tokens(file)


def test_a_token_put_there_by_mistake_is_not_repeated(file):
    token, _ = new_token("laptop")
    file.write_text(token)
    with pytest.raises(InvalidRequest) as caught:
        Tokens(file)
    assert token not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match="nowhere cannot be read: No such file"):
        Tokens(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(file, token, mode):
    file.chmod(mode)
    with pytest.raises(InvalidRequest, match="chmod go-w"):
        Tokens(file)
    file.chmod(0o444)
    assert Tokens(file).name_of(token) == "laptop"


def test_a_file_of_another_user_is_refused(file, token, monkeypatch):
    if os.geteuid() == 0:
        os.chown(file, 1234, -1)
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(InvalidRequest, match=f"belongs to user {file.stat().st_uid}.*chown it"):
        Tokens(file)


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\v", "\f", "\x1c"])
def test_what_a_comment_holds_is_no_token(file, token, separator):
    value, line = new_token("stranger")
    file.write_text(file.read_text() + f"# taken out:{separator}{line}\n", encoding="utf-8")
    tokens = Tokens(file)
    assert (tokens.name_of(token), tokens.name_of(value)) == ("laptop", None)
