"""One gRPC server that hosts any reward: health, limits, drain."""

import errno
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from salon.errors import InvalidRequest
from salon.reward.v1 import reward_pb2, reward_pb2_grpc
from services.drain import Drain
from services.limits import Limits
from services.reward import Reward
from services.servicer import RewardServicer

logger = structlog.get_logger()

SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name
HEALTH_NAMES = ("", "liveness", "readiness", SERVICE)
LAST_WORDS_SECONDS = 1.0  # for statuses on their way out when the last call is done


@dataclass(frozen=True)
class ServerOptions:
    """How the server listens, how much it does at once, how it stops."""

    host: str = "127.0.0.1"
    port: int = 50051
    """0 picks a free port; the log says which."""
    threads: int = 8
    """Calls worked on at once."""
    max_concurrent_calls: int = 64
    """Calls held at once, worked on or waiting for a thread; further ones are refused."""
    grace_seconds: float = 30.0
    """How long calls in flight may take to finish after SIGTERM."""
    reflection: bool = False


def check_address(host: str, port: int) -> None:
    """Say in one line what keeps this process from listening at `host:port`.

    gRPC tells only its own log why it could not bind.

    Raises:
        InvalidRequest: the port is in use, or the address is not one of this machine's.
    """
    address = _address(host, port)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: a port whose last connections are still dying is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidRequest(f"{address} is in use; free it or choose another --port") from None
        raise InvalidRequest(
            f"cannot listen at {address}: {error.strerror}; choose another --host or --port"
        ) from None


def serve(rewards: Sequence[Reward], options: ServerOptions, limits: Limits) -> None:
    """Host `rewards` until SIGTERM or SIGINT, then drain.

    Draining: health says NOT_SERVING, new calls get UNAVAILABLE, calls in flight finish within
    `options.grace_seconds`; what then still runs is cut off.

    Raises:
        InvalidRequest: it cannot listen at the address.
    """
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    drain = Drain()
    checks = health.HealthServicer()
    server = _server(options, limits)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(
        RewardServicer(rewards, limits, drain), server
    )
    _add_health(server, checks)
    if options.reflection:
        _add_reflection(server)
    check_address(options.host, options.port)
    port = server.add_insecure_port(_address(options.host, options.port))
    server.start()
    logger.info(
        "serving",
        host=options.host,
        port=port,
        rewards={reward.name: reward.version for reward in rewards},
    )
    stopping.wait()

    logger.info("draining", grace_seconds=options.grace_seconds)
    checks.enter_graceful_shutdown()
    unfinished = drain.close(options.grace_seconds)
    if unfinished:
        logger.warning("grace is over, calls are cut off", calls=unfinished)
    server.stop(0 if unfinished else LAST_WORDS_SECONDS).wait()
    logger.info("stopped")


def _server(options: ServerOptions, limits: Limits) -> grpc.Server:
    # Threads, not asyncio: a loop cannot answer anyone while it reads a big message. Measured with
    # grpcio 1.85.1 on two cores: while one client sent 16 MB messages, the slowest percent of
    # another's small calls took 13 ms with threads and 43 ms with asyncio.
    return grpc.server(
        ThreadPoolExecutor(options.threads, thread_name_prefix="call"),
        maximum_concurrent_rpcs=options.max_concurrent_calls,
        options=[
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
            # Otherwise two servers could share a port, and clients would reach either.
            ("grpc.so_reuseport", 0),
            # Clients ping every minute while they wait for a long call; the default allows one in
            # five minutes and then drops the connection.
            ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ],
    )


def _add_health(server: grpc.Server, checks: health.HealthServicer) -> None:
    # A thread of their own: a probe must not wait behind scoring, or a busy service looks dead.
    checks.Check.__func__.experimental_thread_pool = ThreadPoolExecutor(
        1, thread_name_prefix="health"
    )
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in HEALTH_NAMES:
        checks.set(name, health_pb2.HealthCheckResponse.SERVING)


def _add_reflection(server: grpc.Server) -> None:
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
