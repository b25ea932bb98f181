"""TLS and token on the caller's side; the services' side is in tests/services."""

import queue
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from salon.client.channel import connect
from salon.errors import InvalidRequest
from salon.security import Security, read_pair, read_roots
from salon.settings import load_settings
from tests.fixtures.certificates import Authority
from tests.fixtures.service import free_port

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
    """Targets of one server: plaintext, a Unix socket, TLS, mutual TLS."""
    certificate, key = authority.issue("mirror")
    pair, roots = read_pair(certificate, key)[::-1], read_roots(authority.file)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Mirror()])
    socket = f"unix:{authority.folder / 'mirror.sock'}"
    server.add_insecure_port(socket)
    ports = {
        "plaintext": server.add_insecure_port("127.0.0.1:0"),
        "tls": server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair])),
        "mutual": server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], roots, require_client_auth=True)
        ),
    }
    server.start()
    targets = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    yield targets | {"socket": socket}
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


def test_a_server_of_another_authority_is_not_trusted(mirror, authority, tmp_path):
    assert call(mirror["tls"], Security(ca=authority.file)) == ""
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


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_this_host_is_reached_without_a_proxy(mirror, monkeypatch, name):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    port = mirror["plaintext"].rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "dns:///localhost", "0.0.0.0"):
        assert call(f"{host}:{port}", Security()) == ""
    assert call(mirror["socket"], Security()) == ""


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
