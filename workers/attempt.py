"""The processes of one attempt at a job: rank 0 is its trainer, the others compute with it."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
import structlog

from salon.errors import naming
from salon.jobs.lease import Lease, LeaseLost
from salon.own_modules import python

log = structlog.get_logger()

POLL_SECONDS = 0.5
START_SECONDS = 300.0
"""What Python and its imports may take, on the busiest host, before a trainer's first heartbeat."""
BEATS = 3  # in the length of a lease, as a trainer's
LOST_RANK_SECONDS = 60.0
"""What rank 0 has to say why another one ended, after it has sent its trackers what is left. It may
also wait for that one in vain."""
EXIT_OK, EXIT_PASSING = 0, 76  # of trainer/__main__.py


class Attempt:
    """Starts `python -m trainer run JOB`, once or as several ranks on this host.

    Ranks find each other by the variables of `torchrun` and `accelerate launch`, but neither starts
    them: `accelerate launch` starts one process where there is no GPU, and the agent of both
    allows 30 seconds to stop in, whatever `grace_seconds` is.
    """

    def __init__(self, lease: Lease, processes: int, grace_seconds: float) -> None:
        """Start them.

        Raises:
            OSError: one of them cannot be started; none runs then.
        """
        self._lease = lease
        self._grace_seconds = grace_seconds
        command = python("trainer", "run", lease.job, "--token", str(lease.token))
        self._ranks: list[subprocess.Popen[bytes]] = []
        try:
            for variables in _environments(processes):
                environment = {**os.environ, **variables}
                with naming(Path(command[0])):
                    started = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
                self._ranks.append(started)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End whatever still runs."""
        self._end()

    def _end(self) -> None:
        for process in self._ranks:
            if process.poll() is None:
                process.kill()
            process.wait()

    def supervise(self, stopping: threading.Event) -> str:
        """Wait for rank 0 to end; on shutdown ask it to checkpoint, then insist.

        The other ranks stop as it stops, and a rank that dies ends them all. Until its first
        heartbeat, which may take long on a busy host, the lease is renewed here.

        Args:
            stopping: set when this host is to stop.

        Returns:
            How the attempt ended, for people.
        """
        first = self._ranks[0]
        starting = _Starting(self._lease)
        while not _has_ended(first, POLL_SECONDS):
            if starting.is_overdue():
                first.kill()
                first.wait()
                return f"it did not begin to work within {START_SECONDS:.0f} s"
            if stopping.is_set():
                first.send_signal(signal.SIGTERM)
                allowed = self._grace_seconds
            elif any(process.poll() not in (None, EXIT_OK) for process in self._ranks[1:]):
                allowed = LOST_RANK_SECONDS
            else:
                continue
            if not _has_ended(first, allowed):
                first.kill()
        return self._describe()

    def _describe(self) -> str:
        codes = [process.poll() for process in self._ranks]
        for rank, code in enumerate(codes):
            # A rank that lost another is not the cause.
            if code not in (None, EXIT_OK, EXIT_PASSING):
                return _describe(code) if len(codes) == 1 else f"rank {rank}: {_describe(code)}"
        return _describe(codes[0] or EXIT_OK)


class _Starting:
    """A trainer between the start of its process and its first heartbeat."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._over = False
        self._deadline = time.monotonic() + START_SECONDS
        self._renewed = time.monotonic()

    def is_overdue(self) -> bool:
        """Renew the lease, if it is time to; true once the trainer has taken too long."""
        if self._over:
            return False
        now = time.monotonic()
        if now - self._renewed >= self._lease.seconds / BEATS:
            self._renewed = now
            self._renew()
        return not self._over and now > self._deadline

    def _renew(self) -> None:
        try:
            self._over = self._lease.hold()
        except LeaseLost:
            self._over = True  # it is another's, or the job is over: the trainer will find that
        except redis.RedisError as error:
            log.warning("cannot renew the lease", job=self._lease.job, reason=str(error))


def _environments(processes: int) -> Iterator[dict[str, str]]:
    """What tells each of them who it is and where rank 0 is; nothing to one that is alone."""
    if processes == 1:
        yield {}
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    for rank in range(processes):
        yield {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        }


def _has_ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether it has, within so long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _describe(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
