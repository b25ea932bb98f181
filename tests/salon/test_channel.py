"""TLS and token on the caller's side; the services' side is in tests/services."""

import queue
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from salon.certificates import read_pair, read_roots
from salon.channel import Security, connect
from salon.errors import InvalidRequest
from salon.settings import load_settings
from salon.targets import is_local
from tests.fixtures.certificates import Authority

TRANSIENT_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Mirror(grpc.GenericRpcHandler):
    """Answers with the authorization it was sent."""

    def service(self, handler_call_details):
        metadata = dict(handler_call_details.invocation_metadata)
        answer = metadata.get("authorization", "").encode()
        return grpc.unary_unary_rpc_method_handler(lambda *_: answer)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def mirror(authority):
    """Targets of one server: plaintext, TLS, mutual TLS."""
    certificate, key = authority.issue("mirror")
    pair, roots = read_pair(certificate, key)[::-1], read_roots(authority.file)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Mirror()])
    ports = {
        "plaintext": server.add_insecure_port("127.0.0.1:0"),
        "tls": server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair])),
        "mutual": server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], roots, require_client_auth=True)
        ),
    }
    server.start()
    yield {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    server.stop(0).wait()


def call(target, security):
    with connect(target, security=security) as channel:
        return channel.unary_unary("/x/Y")(b"", timeout=20).decode()


def refused(target, security):
    """Not by a call: the retries repeat a failed handshake as they do a service that starts."""
    states = queue.Queue()
    with connect(target, security=security) as channel:
        channel.subscribe(states.put, try_to_connect=True)
        while (state := states.get(timeout=20)) is not TRANSIENT_FAILURE:
            assert state is not grpc.ChannelConnectivity.READY


def test_the_token_goes_along_with_and_without_tls(mirror, authority):
    for name, ca in (("plaintext", None), ("tls", authority.file)):
        assert call(mirror[name], Security(ca=ca)) == ""
        assert call(mirror[name], Security(token="secret", ca=ca)) == "Bearer secret"


def test_calls_in_the_background_carry_it_too(mirror):
    security = Security(token="secret")
    with connect(mirror["plaintext"], security=security) as channel:
        method = channel.unary_unary("/x/Y")
        call = method.future(b"", timeout=20, metadata=[("other", "value")])
        assert call.result() == b"Bearer secret"
        assert method.with_call(b"", timeout=20)[0] == b"Bearer secret"


def test_a_server_of_another_authority_is_not_trusted(mirror, tmp_path):
    refused(mirror["tls"], Security(ca=Authority(tmp_path, "another").file))


def test_mutual_tls_needs_a_certificate_of_the_authority(mirror, authority, tmp_path):
    certificate, key = authority.issue("caller")
    security = Security("secret", authority.file, certificate, key)
    assert call(mirror["mutual"], security) == "Bearer secret"
    refused(mirror["mutual"], Security(ca=authority.file))
    stranger = Authority(tmp_path, "another").issue("stranger")
    refused(mirror["mutual"], Security("", authority.file, *stranger))


@pytest.mark.parametrize("target", ["rewards:50051", "10.0.0.1:50051", "dns:///localhost.evil:1"])
def test_a_token_is_not_sent_in_plaintext_to_another_host(target):
    with pytest.raises(InvalidRequest, match=rf"{target} in plaintext.*SALON_TLS_CA"):
        connect(target, security=Security(token="secret"))
    connect(target, security=Security(token="secret", plaintext_token=True)).close()
    connect(target).close()


@pytest.mark.parametrize(
    "target",
    [
        *("127.0.0.1:1", "127.8.8.8:1", "localhost:1", "localhost", "[::1]:1", "::1"),
        *("unix:/run/salon.sock", "unix:///run/salon.sock", "ipv4:127.0.0.1:1,127.0.0.2:1"),
        *("ipv6:[::1]:1", "dns:localhost:1", "dns:///localhost:1", "dns://10.0.0.1/localhost:1"),
    ],
)
def test_these_targets_are_on_this_host(target):
    assert is_local(target)


@pytest.mark.parametrize(
    "target",
    [
        *("10.0.0.1:1", "rewards:1", "rewards", "[::2]:1", "0.0.0.0:1", "[::]:1", ":1", ""),
        *("ipv4:127.0.0.1:1,10.0.0.1:1", "dns:///rewards:1", "localhost.example.com:1"),
        *("xds:///localhost:1", "https://localhost:1", "127.0.0.1.example.com:1"),
    ],
)
def test_these_may_be_elsewhere(target):
    assert not is_local(target)


def test_the_token_is_not_shown():
    assert "secret" not in repr(Security(token="secret"))


@pytest.mark.parametrize("name", ["certificate", "key"])
def test_certificate_and_key_come_together(authority, name):
    with pytest.raises(InvalidRequest, match=f"TLS {name} without its"):
        connect("127.0.0.1:1", security=Security(ca=authority.file, **{name: authority.file}))


def test_settings_hold_it_and_do_not_show_the_token(monkeypatch, tmp_path):
    for name, value in (
        ("REWARD_TOKEN", "secret"),
        ("TLS_CA", str(tmp_path / "ca.pem")),
        ("TLS_CERTIFICATE", ""),
        ("PLAINTEXT_TOKEN", "true"),
    ):
        monkeypatch.setenv(f"SALON_{name}", value)
    settings = load_settings()
    assert settings.security == Security("secret", tmp_path / "ca.pem", plaintext_token=True)
    assert "secret" not in repr(settings)
    monkeypatch.setenv("SALON_RESEND_SECONDS", "30")
    with pytest.raises(InvalidRequest) as caught:
        load_settings()
    assert "RESEND_SECONDS" in str(caught.value)
    assert "secret" not in str(caught.value)
