"""TLS of the server, and whether it may be reached without proof of who calls."""

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from salon.errors import InvalidRequest
from salon.security import read_pair, read_roots
from services.server.reloading import Reloaded
from services.server.tokens import Tokens

logger = structlog.get_logger()


@dataclass(frozen=True)
class TlsFiles:
    """PEM files; with `client_ca` callers must show a certificate from it (mutual TLS)."""

    certificate: Path
    """The server's chain, its own certificate first."""
    key: Path
    client_ca: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for `grpc.Server.add_secure_port`.

    Files that are replaced, as a certificate manager does, serve the connections made from then
    on; connections that are open keep theirs. A replacement that cannot be used is logged and
    ignored.

    Raises:
        InvalidRequest: a file cannot be read, or the key is not that of the certificate.
    """
    paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]
    configuration = Reloaded(paths, lambda: _configuration(files))
    return grpc.dynamic_ssl_server_credentials(
        configuration.value(),
        configuration.value,  # asked at every new connection
        require_client_authentication=files.client_ca is not None,
    )


def check_exposure(host: str, tls: TlsFiles | None, tokens: Tokens | None, insecure: bool) -> None:
    """Refuse to let anyone on the network call; warn of tokens that could be overheard.

    Args:
        host: the address to listen at.
        tls: what the server shows; with a `client_ca`, callers are known.
        tokens: with them, callers are known.
        insecure: the operator says that the network itself is trusted.

    Raises:
        InvalidRequest: others than this host could call, unknown, and `insecure` is False.
    """
    if _is_loopback(host):
        return
    mutual = tls is not None and tls.client_ca is not None
    if tokens is None and not mutual and not insecure:
        raise InvalidRequest(
            f"at {host} anyone on the network could call: add --tokens or --tls-client-ca, listen "
            "at 127.0.0.1, or say --insecure where the network itself keeps others out"
        )
    if tokens is not None and tls is None and not insecure:
        logger.warning(
            "tokens travel in plaintext: add --tls-cert and --tls-key, "
            "or say --insecure where something else encrypts the way",
            host=host,
        )


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    chain, key = read_pair(files.certificate, files.key)
    roots = read_roots(files.client_ca) if files.client_ca is not None else None
    return grpc.ssl_server_certificate_configuration([(key, chain)], roots)


def _is_loopback(host: str) -> bool:
    """Whether `host` means this machine alone, in every way it resolves."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)
