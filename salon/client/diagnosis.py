"""Why a connection to a reward service fails, where gRPC only says that it does."""

import socket
import ssl
import time

from salon.security import Security
from salon.targets import addresses, through_proxy

PROBE_SECONDS = 2.0
"""Longest that a look may take: connecting, the handshake and the first byte together."""

_CLOSED = "it closes the connection after the handshake"


def explain(target: str, security: Security, seconds: float = PROBE_SECONDS) -> str:
    """What a look at the service shows to be wrong between its TLS and this caller's.

    Args:
        target: as `salon.client.channel.connect` takes it.
        security: what the caller connected with.
        seconds: longest that the look may take, if less than PROBE_SECONDS.

    Returns:
        What is wrong and the way out; empty where TLS is not what is wrong, nobody listens, or the
        target is not one host and port.
    """
    place = _one_place(target)
    if place is None:
        return ""
    host, port = place
    expires = time.monotonic() + min(seconds, PROBE_SECONDS)
    secure = security.ca is not None or security.certificate is not None
    try:
        with socket.create_connection((host, port), _left(expires)) as plain:
            welcome = _shake_hands(plain, host, security, secure, expires)
    except ssl.SSLCertVerificationError as error:
        return _unverified(host, security, error)
    except ssl.SSLError as error:
        return _refused(security, error.reason or str(error)) if secure else ""
    except (OSError, ValueError):
        return ""
    if secure:
        return "" if welcome else _refused(security, _CLOSED)
    return (
        "the service speaks TLS and this caller does not: give the CA of its certificate "
        "(SALON_TLS_CA, or Security(ca=...))"
    )


def unreached(target: str, seconds: float) -> str:
    """That nobody takes a connection at `target`, and the way out; empty where somebody does.

    Also empty where a look cannot tell: where the target is not one host and port, or a proxy leads
    there.

    Args:
        target: as `salon.client.channel.connect` takes it.
        seconds: longest that the look may take.
    """
    place = _one_place(target)
    if place is None or through_proxy(target):
        return ""
    try:
        socket.create_connection(place, seconds).close()
    except TimeoutError:
        reason = f"no answer within {seconds:g} s"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        return ""
    return (
        f"nothing answers there ({reason}), and the deadline came before a service did: check that "
        "it runs there and that the address is right"
    )


def _one_place(target: str) -> tuple[str, int] | None:
    """Host and port, where a target is that."""
    found = addresses(target) or []
    if len(found) != 1:
        return None
    host, port = found[0]
    return (host, port) if host and port else None


def _left(expires: float) -> float:
    """Seconds until then; raises TimeoutError where there are none, as 0 would mean no waiting."""
    seconds = expires - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _shake_hands(
    plain: socket.socket, host: str, security: Security, secure: bool, expires: float
) -> bool:
    """Do as gRPC would, and say whether the service goes on after the handshake.

    Raises:
        ssl.SSLError: it, or what it shows, does not fit.
        OSError: it closes the connection, or says nothing.
    """
    context = ssl.create_default_context(cafile=security.ca)
    if not secure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if security.certificate is not None:
        context.load_cert_chain(security.certificate, security.key, password="none")  # noqa: S106
    context.set_alpn_protocols(["h2"])
    plain.settimeout(_left(expires))
    with context.wrap_socket(plain, server_hostname=host) as connection:
        # By TLS 1.3 the handshake is over before a service has seen this caller's certificate, and
        # gRPC's then closes without a word. If all is well it sends its settings of HTTP/2.
        if secure:
            connection.settimeout(_left(expires))
        return not secure or bool(connection.recv(1))


def _unverified(host: str, security: Security, error: ssl.SSLCertVerificationError) -> str:
    words = f"the service's certificate cannot be trusted ({error.verify_message})"
    # The numbers are OpenSSL's, of <openssl/x509_vfy.h>.
    if error.verify_code in (62, 64):  # another host name, another IP address
        return f"{words}: dial a name that it is made for, instead of {host}"
    if error.verify_code in (9, 10):  # not yet valid, expired
        return f"{words}: renew it, or set this host's clock"
    ca = security.ca or "the authorities that this system knows"
    return f"{words}: it does not come from {ca}; give its own CA (SALON_TLS_CA)"


def _refused(security: Security, reason: str) -> str:
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return (
            "the service speaks no TLS and this caller does: unset SALON_TLS_CA (or leave out "
            "Security(ca=...)), or start the service with --tls-cert and --tls-key"
        )
    if "ALERT" not in reason and reason != _CLOSED:
        return ""
    if security.certificate is None:
        return (
            f"the service asks for a certificate of its callers ({reason}): give one "
            "(SALON_TLS_CERTIFICATE and SALON_TLS_KEY)"
        )
    return (
        f"the service refuses this caller's certificate {security.certificate} ({reason}): it must "
        "come from the service's --tls-client-ca, and not be expired"
    )
