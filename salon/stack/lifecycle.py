"""The local stack: Redis, reward services, their scoring workers, a training worker, on this host.

`python -m salon.stack.lifecycle REDIS OWNER REWARD...` is the supervisor; `up` and `down` start and
stop it
in the background.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import grpc
import psutil
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from salon import logs, redis_url
from salon.client.channel import connect
from salon.errors import SalonError, StackUnavailable
from salon.extras import absent, require
from salon.jobs.bound import settle_bound_jobs
from salon.own_modules import come_last, python
from salon.private import append_privately, make_private, make_usable, require_own
from salon.queue.broker import create_app
from salon.queue.connection import RedisMisnamed, RedisRefused, connect_now
from salon.redis_password import with_new_password
from salon.settings import Settings, load_settings
from salon.stack.embedded_redis import redis_program
from salon.stack.local_services import (
    DEFAULT_REWARDS,
    LocalService,
    address,
    local_services,
    reward_targets,
    service_targets,
)
from salon.stack.log_file import LogFile
from salon.stack.ports import why_taken
from salon.stack.programs import programs, scoring_workers
from salon.stack.shared_dir import make_own_shared_dir, remove_own_shared_dir
from salon.stack.state import Record, is_alive, may_end, read_state, state_file
from salon.stack.supervisor import POLL_SECONDS, Supervisor

log = structlog.get_logger()

READY_SECONDS = 60.0
# Each service of a neural network imports torch and loads its model: some 10 s of one core.
SERVICE_READY_SECONDS = 20.0
TELL_SECONDS = 1.0  # between two words of what `down` waits for
LOCAL_HOSTS = ("127.0.0.1", "localhost")
EMBEDDED, FOREIGN = "embedded", "foreign"  # whose Redis it is


def up(
    settings: Settings, rewards: Sequence[str] = DEFAULT_REWARDS, owner: int = 0
) -> dict[str, Any]:
    """Start the stack in the background and wait until all of it answers.

    A Redis that answers where SALON_REDIS_URL says is used as it is, and `down` leaves it alone;
    else the stack starts one of its own there.

    Args:
        settings: those of the stack.
        rewards: names of those to serve, or `all`.
        owner: the id of this process, if the stack is to end with it; 0: it goes on alone.

    Returns:
        The stack's state; see `salon.stack.state.Record`.

    Raises:
        UnknownReward: the stack has no service for one of `rewards`.
        InvalidRequest: a tiny model is not there, an address cannot be used, the state folder
            is not this user's alone to write into, or it or that of the runs cannot be written.
        MissingExtra: a part of the package that the stack needs is not installed.
        RedisMisnamed: SALON_REDIS_URL is no URL of a Redis.
        RedisRefused: something else answers there, or a Redis with another password.
        StackUnavailable: nothing answers there, and the stack's own Redis cannot be there.
        SalonError: a stack runs already, a port is in use, or a part did not become ready.
    """
    require_own(settings.state_dir)
    left = read_state(settings)
    if state := running(settings):
        raise SalonError(
            f"a stack runs already here (pid {state['pid']}): `salon submit` gives it a job, "
            "`salon down` stops it"
        )
    # All that may be wrong with them is found here, where the error reaches the user.
    services = local_services(settings, rewards)
    _require_extras(services, trains=owner != 0)
    programs(settings, services)
    make_usable(settings.state_dir, "SALON_STATE_DIR")
    make_usable(settings.runs_dir, "SALON_RUNS_DIR")
    with _only_one(settings) as lock:
        if left and left["own_shared_dir"]:  # of one that was killed as a whole
            remove_own_shared_dir(Path(left["own_shared_dir"]))
        whose = _whose_redis(settings)
        _check_ports(settings, services, whose)
        if whose == EMBEDDED:
            own = with_new_password(settings.state_dir, settings.redis_url)
            settings = settings.model_copy(update={"redis_url": own})
            redis_program(settings.state_dir, settings.redis_url)
        make_private(settings.state_dir / "logs")
        with os.fdopen(append_privately(settings.state_dir / "logs" / "stack.log"), "ab") as output:
            process = subprocess.Popen(
                python("salon.stack.lifecycle", whose, str(owner), *rewards),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
    try:
        _wait_ready(settings, services, process)
    except BaseException:
        down(settings, process.pid)
        raise
    return running(settings) or {}


def _only_one(settings: Settings) -> IO[bytes]:
    """A file that is locked while it is open here or in the supervisor, which inherits it.

    Raises:
        SalonError: another stack starts in this moment, or runs.
    """
    lock = os.fdopen(append_privately(settings.state_dir / "stack.lock"), "ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SalonError(
            "a stack runs already, or it starts or stops: stop it with `salon down`"
        ) from None
    return lock


def _require_extras(services: Sequence[LocalService], *, trains: bool) -> None:
    """What the processes need; raises MissingExtra.

    The training worker only launches trainers: one may never be asked for one.
    """
    parts = ["services", *(["trainer"] if trains else [])]
    parts += ["models"] if any(service.options for service in services) else []
    if absent(*parts):  # if only the server of Redis is, another may be there
        require("the local stack", "stack", *parts)


def down(
    settings: Settings,
    pid: int | None = None,
    waiting: Callable[[list[str]], None] = lambda _: None,
) -> bool:
    """Stop the stack and everything it started; what a killed supervisor left behind, too.

    Args:
        settings: those of the stack.
        pid: its supervisor's, where it may have left no record yet.
        waiting: told now and then which of its processes are still there.

    Returns:
        Whether there was anything to stop.

    Raises:
        InvalidRequest: the state folder is another user's, or others may write into it.
    """
    require_own(settings.state_dir)
    if pid is not None:
        _end(settings, pid, None, waiting)  # also where its record cannot be read
    state = read_state(settings)
    if state is None:
        return pid is not None
    supervises = pid is None and may_end(state)
    if supervises:
        _end(settings, state["pid"], state, waiting)
    leftovers = [child for child in state["children"] if may_end(child)]
    for child in leftovers:
        os.killpg(child["pid"], signal.SIGKILL)
    if state["own_shared_dir"]:
        remove_own_shared_dir(Path(state["own_shared_dir"]))
    state_file(settings).unlink(missing_ok=True)
    return bool(pid is not None or supervises or leftovers)


def _end(
    settings: Settings,
    supervisor: int,
    state: Mapping[str, Any] | None,
    waiting: Callable[[list[str]], None],
) -> None:
    try:
        process = psutil.Process(supervisor)
        process.terminate()
        deadline = time.monotonic() + 2 * settings.lease_seconds + 3 * settings.grace_seconds + 30
        while time.monotonic() < deadline:
            try:
                process.wait(TELL_SECONDS)
            except psutil.TimeoutExpired:
                children = state["children"] if state else []
                waiting([child["name"] for child in children if is_alive(child)] or ["the stack"])
            else:
                return
        process.kill()  # what it leaves behind is ended by who called
    except psutil.NoSuchProcess:
        log.debug("supervisor is gone already", pid=supervisor)


def running(settings: Settings) -> dict[str, Any] | None:
    """The state of the stack that runs from this state folder, or None."""
    state = read_state(settings)
    if state is None:
        return None
    alive = [is_alive(part) for part in [state, *state["children"]]]
    return state if any(alive) else None


def _whose_redis(settings: Settings) -> str:
    url = settings.redis_url
    try:
        connect_now(url)
    except (RedisRefused, RedisMisnamed):
        raise
    except StackUnavailable:
        if redis_url.own_port(url) is None:
            raise
        return EMBEDDED
    if "redis_url" not in settings.model_fields_set:  # anybody on this host may have started it
        raise RedisRefused(
            f"a Redis that is not this stack's answers at {redis_url.shown(url)}, the default: set "
            "SALON_REDIS_URL to use it, or to another port of 127.0.0.1 for one of the stack's own"
        )
    return FOREIGN


def _check_ports(settings: Settings, services: Sequence[LocalService], whose_redis: str) -> None:
    targets = service_targets(settings, services)
    several = f", the first of {len(targets)} in a row" if len(targets) > 1 else ""
    wanted = [("SALON_REWARD_TARGET", *address(target), several) for target in targets]
    port = redis_url.own_port(settings.redis_url)
    if whose_redis == EMBEDDED and port is not None:
        wanted.insert(0, ("SALON_REDIS_URL", "127.0.0.1", port, ""))
    for name, host, port, remark in wanted:
        if host not in LOCAL_HOSTS:
            raise SalonError(f"{name} is {host}:{port}: the local stack runs on 127.0.0.1 only")
        if taken := why_taken(host, port):
            raise SalonError(f"{host}:{port} {taken}, or set {name} to another port{remark}")


def _wait_ready(
    settings: Settings, services: Sequence[LocalService], supervisor: "subprocess.Popen[bytes]"
) -> None:
    """Until Redis, the services and both workers answer.

    Raises:
        SalonError: naming the part that does not, and its log.
    """
    logs_folder = settings.state_dir / "logs"
    deadline = time.monotonic() + READY_SECONDS + SERVICE_READY_SECONDS * len(services)
    waiting = "redis"
    while time.monotonic() < deadline and supervisor.poll() is None:
        waiting = _not_ready(settings, services)
        if not waiting:
            return
        if _failing(settings, supervisor.pid):
            break
        try:
            supervisor.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    if failing := _failing(settings, supervisor.pid):
        waiting = failing[0]
    elif supervisor.poll() is not None:
        waiting = "stack"
    log_file = logs_folder / f"{waiting}.log"
    raise StackUnavailable(f"{waiting} did not start: see {log_file}{_last_line(log_file)}")


def _failing(settings: Settings, supervisor: int) -> list[str]:
    """Those that die whenever they are started, by the record of that supervisor."""
    state = read_state(settings)
    return list(state["failing"]) if state and state["pid"] == supervisor else []


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines() if log_file.exists() else []
    return f", which ends with: {lines[-1]}" if lines else ""


def _not_ready(settings: Settings, services: Sequence[LocalService]) -> str:
    """The first part that does not answer, or an empty string."""
    try:
        connect_now(settings.redis_url)
    except StackUnavailable:
        return "redis"
    for service, target in zip(services, service_targets(settings, services), strict=True):
        if not _is_ready(target):
            return service.module
    with create_app(settings) as app:
        answers = {name for reply in app.control.ping(timeout=0.5) for name in reply}
    scoring = scoring_workers(reward_targets(settings, services))
    for worker in (*scoring, "training"):
        if not any(name.startswith(f"{worker}@") for name in answers):
            return worker
    return ""


def _is_ready(target: str) -> bool:
    with connect(target, retries=False) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            answer = check(health_pb2.HealthCheckRequest(service="readiness"), timeout=1.0)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    """Supervise the stack until SIGTERM."""
    logs.configure("stack")
    come_last()
    settings = load_settings()
    folder = settings.state_dir / "logs"
    supervisor = Supervisor(folder)
    with LogFile(folder / "stack.log", "stack").standard_streams():
        try:
            _supervise(settings, supervisor, sys.argv[1], sys.argv[2], sys.argv[3:])
        except Exception:
            log.exception("the stack ends")
            sys.exit(1)


def _supervise(
    settings: Settings,
    supervisor: Supervisor,
    whose_redis: str,
    owner: str,
    rewards: Sequence[str],
) -> None:
    services = local_services(settings, rewards)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stopping.set())
    own_shared_dir = make_own_shared_dir(settings)
    if own_shared_dir is not None:
        settings = settings.model_copy(update={"shared_dir": own_shared_dir})
    note = {
        "rewards": reward_targets(settings, services),
        "own_shared_dir": own_shared_dir and str(own_shared_dir),
    }
    record = Record(settings, supervisor, note)
    try:
        # Each at once: whatever ends this process, `down` finds what it has started.
        if whose_redis == EMBEDDED:
            supervisor.add(redis_program(settings.state_dir, settings.redis_url))
            record.update()
        _await_redis(settings, supervisor, record)
        settle_bound_jobs(settings)  # of a stack that had no time to
        for program in programs(settings, services):
            supervisor.add(program)
            record.update()
        while not supervisor.stopping.wait(POLL_SECONDS):
            supervisor.tend()
            record.update()
            if int(owner) not in (0, os.getppid()):
                log.warning("the command that started this stack is gone", owner=owner)
                break
    finally:
        _settle(settings, settings.lease_seconds + settings.grace_seconds)
        for child in reversed(supervisor.children):
            if child.program.name != "redis":
                child.stop()
        # Of a trainer that had to be killed the job is free now, or when its lease has expired.
        _settle(settings, settings.lease_seconds)
        supervisor.stop()
        if own_shared_dir is not None:
            remove_own_shared_dir(own_shared_dir)


def _settle(settings: Settings, wait_seconds: float) -> None:
    try:
        settle_bound_jobs(settings, wait_seconds)
    except Exception:
        # Whatever it is, the processes are still to be stopped.
        log.exception("cannot settle the jobs of this stack")


def _await_redis(settings: Settings, supervisor: Supervisor, record: Record) -> None:
    """Until it answers, or long enough; raises StackUnavailable where the stack's own cannot be."""
    deadline = time.monotonic() + READY_SECONDS
    while not supervisor.stopping.wait(POLL_SECONDS) and time.monotonic() < deadline:
        supervisor.tend()
        record.update()
        if any(child.fails_to_start for child in supervisor.children):
            raise StackUnavailable("redis dies whenever it is started")
        try:
            connect_now(settings.redis_url)
        except StackUnavailable:
            continue
        return


if __name__ == "__main__":
    main()
