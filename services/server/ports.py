"""gRPC servers and the ports they listen at."""

import errno
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health

from salon.errors import InvalidRequest
from services.scoring.limits import Limits
from services.server.health import SERVICE
from services.server.receiving import MAX_CALLS
from services.server.tls import TlsFiles, server_credentials

SPARE_THREADS = 8  # to describe rewards, and to refuse calls, while all others wait for scores
CEILING = 1024
"""Calls of any kind that gRPC holds beyond those that `Admission` lets in. Above it gRPC turns away
even health checks; it only keeps a flood from taking all memory."""

PING_SECONDS, PING_ANSWER_SECONDS = 30.0, 20.0
"""How often a connection on which nothing arrives is asked for a sign of life, and for how long. Of
a caller whose machine is gone nothing else would tell."""

WINDOW_BYTES = 256 * 1024
"""Most bytes of a message that may be sent before it is asked for (see `Turns`). Beside 64 who
sent 16 MB each the service held 1.2 GB without this, and 0.2 to 0.5 with."""

# Otherwise two servers could share a port, and clients would reach either.
_PORT_ALONE = ("grpc.so_reuseport", 0)


def call_server(
    limits: Limits, max_concurrent_calls: int, interceptors: list[grpc.ServerInterceptor]
) -> grpc.Server:
    """A server for calls, each of which keeps a thread while its samples wait."""
    # Threads, not asyncio: a loop cannot answer anyone while it reads a big message. Measured with
    # grpcio 1.85.1 on two cores: while one client sent 16 MB messages, the slowest percent of
    # another's small calls took 13 ms with threads and 43 ms with asyncio.
    return grpc.server(
        ThreadPoolExecutor(
            MAX_CALLS + max_concurrent_calls + SPARE_THREADS, thread_name_prefix="call"
        ),
        interceptors=interceptors,
        maximum_concurrent_rpcs=max_concurrent_calls + CEILING,
        options=[
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            _PORT_ALONE,
            # Or it grows to megabytes for each call of a connection that is fast.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
            # Clients ping every minute while they wait for a long call; the default allows one in
            # five minutes and then drops the connection.
            ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
            ("grpc.keepalive_time_ms", int(PING_SECONDS * 1000)),
            # grpc.keepalive_timeout_ms changes nothing in grpcio 1.85.1.
            ("grpc.http2.ping_timeout_ms", int(PING_ANSWER_SECONDS * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )


def probe_server() -> grpc.Server:
    """A server for health checks alone."""
    return grpc.server(
        ThreadPoolExecutor(2, thread_name_prefix="probe"),
        maximum_concurrent_rpcs=CEILING,
        options=[_PORT_ALONE],
    )


def bind(server: grpc.Server, host: str, port: int, tls: TlsFiles | None = None) -> int:
    """Let `server` listen at `host:port`; the port it has then.

    Raises:
        InvalidRequest: it cannot, or the files of `tls` cannot be used.
    """
    _check_address(host, port)
    if tls is None:
        return server.add_insecure_port(_address(host, port))
    return server.add_secure_port(_address(host, port), server_credentials(tls))


def add_reflection(server: grpc.Server) -> None:
    """Let `server` tell what it serves; raises InvalidRequest where the package is missing."""
    try:
        from grpc_reflection.v1alpha import reflection  # noqa: PLC0415
    except ModuleNotFoundError:
        raise InvalidRequest(
            "--reflection needs grpcio-reflection: pip install 'salon[services]'"
        ) from None
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_address(host: str, port: int) -> None:
    """Say in one line what keeps this process from listening at `host:port`.

    gRPC tells only its own log why it could not bind.
    """
    where = _address(host, port)
    try:
        family, kind, protocol, _, sockaddr = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: a port whose last connections are still dying is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(sockaddr)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidRequest(f"{where} is in use; free it or choose another --port") from None
        raise InvalidRequest(
            f"cannot listen at {where}: {error.strerror}; choose another --host or --port"
        ) from None
