"""Keeps child processes running: each in its own group, started again when it dies.

What a container runtime does for a pod, on one host: when a child's main process ends, whatever is
left of its group is killed before it is started again, and stopping leaves nothing behind.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from salon.private import make_private
from salon.stack.log_file import LogFile

log = structlog.get_logger()

POLL_SECONDS = 0.2
RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)  # pauses between quick deaths
STEADY_SECONDS = 20.0  # a child that ran this long died of something new
FAILED_STARTS = 3
NO_PROGRESS_BARS = {"TQDM_DISABLE": "1"}  # in a log file


@dataclass(frozen=True)
class Program:
    """A child to keep running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_seconds: float = 10.0  # between SIGTERM and SIGKILL
    umask: int = 0o077
    """Of the files that it makes: its user's alone; -1 for those of who started the supervisor."""


class Child:
    """One program and the process that runs it now."""

    def __init__(self, program: Program, log_file: LogFile) -> None:
        self.program = program
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._restart_at = 0.0
        self._quick_deaths = 0

    def start(self) -> None:
        """Start the process in a new session, its output appended to its log file."""
        output = self._log_file.pipe()
        try:
            self._process = subprocess.Popen(
                self.program.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**NO_PROGRESS_BARS, **os.environ, **self.program.environment},
                start_new_session=True,
                umask=self.program.umask,
            )
        finally:
            os.close(output)
        self._started = time.monotonic()

    @property
    def pid(self) -> int:
        """The process id, or 0 when none runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process is not None and running else 0

    @property
    def fails_to_start(self) -> bool:
        """Whether it has died soon after each of its latest starts, and not just once or twice."""
        return self._quick_deaths >= FAILED_STARTS

    def tend(self) -> None:
        """Start the process again if it has died, after a pause that grows with quick deaths."""
        if self._process is None:
            if time.monotonic() >= self._restart_at:
                self.start()
            return
        code = self._process.poll()
        if code is None:
            return
        _signal_group(self._process.pid, signal.SIGKILL)
        self._log_file.drain()  # its last words are there before anybody is sent to read them
        quick = time.monotonic() - self._started < STEADY_SECONDS
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        pause = RESTART_SECONDS[min(self._quick_deaths, len(RESTART_SECONDS) - 1)]
        log.warning("child died", name=self.program.name, code=code, restart_seconds=pause)
        self._process = None
        self._restart_at = time.monotonic() + pause

    def stop(self) -> None:
        """End the process and its whole group."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self.program.grace_seconds)
        except subprocess.TimeoutExpired:
            log.warning("child did not stop in time", name=self.program.name)
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._log_file.drain()


class Supervisor:
    """Runs children until told to stop; stops them in the reverse order."""

    def __init__(self, log_folder: Path) -> None:
        make_private(log_folder)
        self._log_folder = log_folder
        self.children: list[Child] = []
        self.stopping = threading.Event()

    def add(self, program: Program) -> Child:
        """Start one more child."""
        log_file = LogFile(self._log_folder / f"{program.name}.log", program.name)
        child = Child(program, log_file)
        child.start()
        self.children.append(child)
        return child

    def tend(self) -> None:
        """One look at every child."""
        for child in self.children:
            child.tend()

    def stop(self) -> None:
        """Stop all children, the last started first."""
        for child in reversed(self.children):
            child.stop()


def _signal_group(leader: int, number: signal.Signals) -> None:
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader:
                process.send_signal(number)
        except (ProcessLookupError, psutil.NoSuchProcess, PermissionError):
            continue
