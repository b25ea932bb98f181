"""Contenders as child processes: started, asked in turn, stopped."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.ddpo.workload import Assignment
from salon.errors import SalonError

STOP_SECONDS = 30.0


class ContenderProcess:
    """One trainer; while nobody asks it anything it waits, and takes no processor time."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        """What its method `do` answers.

        Raises:
            SalonError: it died of it; the message ends with its last words.
        """
        return self.send({"do": do, **arguments})

    def send(self, values: dict[str, Any]) -> dict[str, Any]:
        """Send one line, and wait for the line that answers it; raises as `ask` does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            words = self._log.read_text(errors="replace")[-2000:]
            raise SalonError(f"{self._log.stem} died: {words}")
        return dict(json.loads(answer))


@contextmanager
def contender(
    command: Sequence[str], assignment: Assignment, log: Path
) -> Iterator[ContenderProcess]:
    """Start one and wait until it is built; it ends with the block.

    Args:
        command: what runs a program that calls `benchmarks.ddpo.contender.serve`.
        assignment: its first line.
        log: the file that takes what it prints.

    Raises:
        SalonError: it could not be started or built; the message ends with its last words.
    """
    try:
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )
    except FileNotFoundError:
        raise SalonError(
            f"there is no {command[0]}: `make .venv-trl/installed` builds it"
        ) from None
    with process:
        try:
            child = ContenderProcess(process, log)
            child.send(dataclasses.asdict(assignment))
            yield child
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the end of its commands, at which it ends
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
