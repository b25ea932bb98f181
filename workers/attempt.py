"""The processes of one attempt at a job: rank 0 is its trainer, the others compute with it."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from salon.own_modules import python

POLL_SECONDS = 0.5
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

    def __init__(self, job: str, token: int, processes: int, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        command = python("trainer", "run", job, "--token", str(token))
        self._ranks = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, **variables})
            for variables in _environments(processes)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End whatever still runs."""
        for process in self._ranks:
            if process.poll() is None:
                process.kill()
            process.wait()

    def supervise(self, stopping: threading.Event) -> str:
        """Wait for rank 0 to end; on shutdown ask it to checkpoint, then insist.

        The other ranks stop as it stops, and a rank that dies ends them all.

        Args:
            stopping: set when this host is to stop.

        Returns:
            How the attempt ended, for people.
        """
        first = self._ranks[0]
        while not _has_ended(first, POLL_SECONDS):
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
