"""TLS of a real server, its certificates replaced while it runs; who may be reached by whom."""

import shutil
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from structlog.testing import capture_logs

from salon.client.channel import connect
from salon.errors import InvalidRequest
from salon.security import Security
from salon.tokens import new_token
from services.server import reloading
from services.server.tls import TlsFiles, check_exposure, server_credentials
from services.server.tokens import Tokens
from tests.fixtures.certificates import Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def files(authority):
    return TlsFiles(*authority.issue("server"), client_ca=authority.file)


class Server:
    """A gRPC server behind mutual TLS."""

    def __init__(self, files, authority):
        self.server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        self.port = self.server.add_secure_port("127.0.0.1:0", server_credentials(files))
        self.server.start()
        self._authority = authority
        self._caller = authority.issue("caller")

    def service(self, _details):
        return grpc.unary_unary_rpc_method_handler(lambda message, _context: message)

    def echoes(self, message):
        security = Security("", self._authority.file, *self._caller)
        with connect(f"localhost:{self.port}", security=security) as channel:
            return channel.unary_unary("/x/Y")(message, timeout=20) == message

    def certificate(self):
        """What a new connection is shown."""
        context = ssl.create_default_context(cafile=self._authority.file)
        context.load_cert_chain(*self._caller)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", self.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True)


def der(file):
    return ssl.PEM_cert_to_DER_cert(file.read_text())


@pytest.fixture
def server(files, authority, monkeypatch):
    monkeypatch.setattr(reloading, "CHECK_SECONDS", 0.0)
    server = Server(files, authority)
    yield server
    server.server.stop(0).wait()


def test_callers_with_a_certificate_are_served(server, files):
    assert server.echoes(b"x")
    assert server.certificate() == der(files.certificate)


def test_a_replaced_certificate_is_shown_to_new_connections(server, files, authority):
    before = server.certificate()
    renewed = authority.issue("renewed")
    shutil.copy(renewed[0], files.certificate)
    with capture_logs() as logs:
        # For a moment the certificate is new and the key is old.
        assert server.certificate() == before
        shutil.copy(renewed[1], files.key)
        assert server.certificate() == der(renewed[0]) != before
    assert [log["log_level"] for log in logs] == ["error", "info"]
    assert "does not belong to" in logs[0]["reason"]
    assert server.echoes(b"x")


def test_unusable_files_are_refused_before_anything_listens(files, authority, tmp_path):
    other = authority.issue("other")[1]
    with pytest.raises(InvalidRequest, match="does not belong"):
        server_credentials(TlsFiles(files.certificate, other))
    missing = tmp_path / "missing"
    with pytest.raises(InvalidRequest, match=f"CA file {missing} cannot be read"):
        server_credentials(TlsFiles(files.certificate, files.key, missing))


@pytest.fixture
def tokens(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(new_token("a")[1])
    file.chmod(0o600)
    return Tokens(file)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1"])
def test_this_host_may_always_call(host):
    check_exposure(host, None, None, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no-such-host.invalid", ""])
def test_others_may_not_without_proof_of_who_they_are(host, files):
    one_way = TlsFiles(files.certificate, files.key)
    for tls in (None, one_way):
        with pytest.raises(InvalidRequest, match=r"--tokens or --tls-client-ca.*--insecure"):
            check_exposure(host, tls, None, insecure=False)


def test_tokens_mutual_tls_or_the_operators_word_will_do(files, tokens):
    one_way = TlsFiles(files.certificate, files.key)
    with capture_logs() as logs:
        check_exposure("0.0.0.0", files, None, insecure=False)
        check_exposure("0.0.0.0", one_way, tokens, insecure=False)
        check_exposure("0.0.0.0", None, None, insecure=True)
        check_exposure("0.0.0.0", None, tokens, insecure=True)
    assert logs == []


def test_tokens_in_plaintext_are_warned_of(tokens):
    with capture_logs() as logs:
        check_exposure("0.0.0.0", None, tokens, insecure=False)
    assert [log["log_level"] for log in logs] == ["warning"]
    assert "tokens travel in plaintext" in logs[0]["event"]
