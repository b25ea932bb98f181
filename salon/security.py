"""How callers and services prove who they are: tokens and PEM files for TLS.

The files are read and checked before gRPC sees them: it tells only its own log.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from salon.errors import InvalidRequest


@dataclass(frozen=True)
class Security:
    """How a caller proves who it is, and how it knows the service.

    With `ca` or `certificate` the channel is TLS, without both it is plaintext.
    """

    token: str = field(default="", repr=False)
    """Bearer token, sent with every call."""
    ca: Path | None = None
    """PEM file of the authorities that the service's certificate may come from; None with a
    `certificate`: those that gRPC ships."""
    certificate: Path | None = None
    """PEM chain of the caller's own certificate, for mutual TLS; with `key`."""
    key: Path | None = None
    """PEM private key of `certificate`."""
    plaintext_token: bool = False
    """Send the token over a plaintext channel to another host: right only where something else
    encrypts the way, such as a service mesh. To this host it may always travel in plaintext."""


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """The bytes of a certificate chain and of the private key that belongs to it.

    Raises:
        InvalidRequest: a file cannot be read, holds no PEM of its kind, or the key is encrypted or
            belongs to another certificate.
    """
    chain, secret = _read("certificate", certificate), _read("key", key)
    try:
        # The password keeps OpenSSL from asking for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="none")  # noqa: S106
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidRequest(
                f"TLS key {key} does not belong to certificate {certificate}: give the pair"
            ) from None
        raise InvalidRequest(
            f"TLS certificate {certificate} or key {key} cannot be used "
            f"({error.reason or error}): both must be PEM, the key without a password"
        ) from None
    return chain, secret


def read_roots(file: Path) -> bytes:
    """The bytes of a file of certificate authorities.

    Raises:
        InvalidRequest: the file cannot be read or holds no PEM certificate.
    """
    roots = _read("CA file", file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        raise InvalidRequest(
            f"TLS CA file {file} cannot be used ({error.reason or error}): "
            "it must hold PEM certificates"
        ) from None
    return roots


def _read(what: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"TLS {what} {file} cannot be read ({error.strerror}): "
            "check the path and who may read it"
        ) from None
