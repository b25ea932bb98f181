"""What a caller is told whose TLS does not fit the service's: by real gRPC servers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from salon import RewardClient
from salon.client.calls import Peer, until_answered
from salon.client.channel import connect
from salon.client.diagnosis import explain
from salon.errors import DeadlineExceeded, ServiceUnavailable
from salon.security import Security
from services.server.tls import TlsFiles, server_credentials
from tests.fixtures.certificates import Authority
from tests.fixtures.service import free_port


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("strange"), "strange")


@pytest.fixture(scope="module")
def serve():
    """Start a server, with these files or plaintext; its target."""
    servers = []

    def start(files=None):
        server = grpc.server(ThreadPoolExecutor(1))
        if files is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", server_credentials(files))
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0)


@pytest.fixture(scope="module")
def plain(serve):
    return serve()


@pytest.fixture(scope="module")
def secure(serve, authority):
    return serve(TlsFiles(*authority.issue("server")))


@pytest.fixture(scope="module")
def mutual(serve, authority):
    return serve(TlsFiles(*authority.issue("mutual"), client_ca=authority.file))


def test_a_plaintext_caller_of_a_tls_service_is_told_of_tls(secure, mutual):
    for target in (secure, mutual):
        with RewardClient(target) as client, pytest.raises(ServiceUnavailable) as caught:
            client.describe(deadline=2)
        assert "the service speaks TLS and this caller does not" in str(caught.value)
        assert "SALON_TLS_CA" in str(caught.value)
        assert target in str(caught.value)


def test_a_tls_caller_of_a_plaintext_service_is_told_of_it(plain, authority):
    security = Security(ca=authority.file)
    words = r"speaks no TLS and this caller does.*unset"
    with (
        RewardClient(plain, security=security) as client,
        pytest.raises(ServiceUnavailable, match=words),
    ):
        client.list_rewards(deadline=2)


def test_what_is_wrong_with_a_certificate_is_named(serve, secure, authority, stranger):
    ours = Security(ca=authority.file)
    expired = serve(TlsFiles(*authority.issue("expired", days=-1)))
    elsewhere = serve(TlsFiles(*authority.issue("elsewhere", host="rewards.example")))
    assert str(stranger.file) in explain(secure, Security(ca=stranger.file))
    assert "expired" in explain(expired, ours)
    words = explain(elsewhere, ours)
    assert "dial a name that it is made for, instead of 127.0.0.1" in words


def test_a_caller_without_a_certificate_or_with_a_strange_one_is_told_so(
    mutual, authority, stranger
):
    none = Security(ca=authority.file)
    assert "asks for a certificate of its callers" in explain(mutual, none)
    strange = Security("", authority.file, *stranger.issue("caller"))
    assert "refuses this caller's certificate" in explain(mutual, strange)
    assert "--tls-client-ca" in explain(mutual, strange)


def test_where_tls_is_not_what_is_wrong_nothing_is_said_of_it(plain, secure, mutual, authority):
    ours = Security(ca=authority.file)
    assert explain(plain, Security()) == ""
    assert explain(secure, ours) == ""
    assert explain(f"dns:///{secure}", ours) == ""
    assert explain(mutual, Security("", authority.file, *authority.issue("caller"))) == ""
    for target in (f"127.0.0.1:{free_port()}", "unix:/nowhere", "a:1,b:2", "nonsense"):
        assert explain(target, Security()) == ""
        assert explain(target, ours) == ""


def test_a_service_that_answers_is_not_looked_at(jpeg_service, monkeypatch):
    monkeypatch.setattr("salon.client.calls.explain", None)
    with RewardClient(jpeg_service.target) as client:
        assert client.describe().name == "jpeg_compressibility"


def test_a_service_that_has_the_call_and_is_silent_is_not_looked_at(monkeypatch):
    monkeypatch.setattr("salon.client.calls.explain", None)
    over = threading.Event()

    class Silent(grpc.GenericRpcHandler):
        def service(self, _details):
            return grpc.unary_unary_rpc_method_handler(lambda *_: over.wait() and b"")

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Silent()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with RewardClient(f"127.0.0.1:{port}") as client, pytest.raises(DeadlineExceeded):
            client.describe(deadline=0.5)
    finally:
        over.set()
        server.stop(0)


@pytest.mark.parametrize(("left", "looks"), [(-1.0, 0), (0.0, 0), (1.5, 1)])
def test_a_look_takes_no_longer_than_the_callers_deadline(monkeypatch, left, looks):
    taken = []
    monkeypatch.setattr(
        "salon.client.calls.explain", lambda *arguments: taken.append(arguments[2]) or ""
    )
    target = f"127.0.0.1:{free_port()}"
    expires = time.monotonic() + left
    with connect(target, retries=False) as channel, pytest.raises(ServiceUnavailable):
        call = channel.unary_unary("/x/Y")
        until_answered(lambda: call(b"", timeout=20), Peer(target, channel, Security()), expires)
    assert len(taken) == looks
    assert all(0 < seconds <= left for seconds in taken)


def test_without_time_nothing_is_found(secure):
    assert "speaks TLS" in explain(secure, Security())
    assert explain(secure, Security(), 0.0) == ""
