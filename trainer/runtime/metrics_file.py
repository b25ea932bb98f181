"""`metrics.jsonl` of a run: a line for each iteration and each evaluation, whole or absent."""

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salon.errors import naming
from salon.numbers import finite
from trainer.runtime.run_folder import RunFolder

_NAME = "metrics.jsonl"


class MetricsFile:
    """Append-only; on resume, what lies beyond the checkpoint is cut off and written again.

    Attributes:
        evaluated: after how many iterations the evaluations are that it has.
    """

    def __init__(self, folder: RunFolder, iteration: int) -> None:
        """Continue after `iteration`."""
        entries = [entry for entry in _read(folder) if entry["iteration"] <= iteration]
        self.evaluated = {entry["iteration"] for entry in entries if _is_evaluation(entry)}
        self._folder = folder
        folder.write_text(_NAME, "".join(_line(entry) for entry in entries))
        self._file = (folder.path / _NAME).open("ab", buffering=0)

    def append(self, iteration: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Write a whole line, or none if the disk is full; return what it says.

        Raises:
            OSError: naming the file.
        """
        entry = {**values, "iteration": iteration, "time": time.time()}
        self._folder.check()  # the file would take it, even if it were deleted
        line = _line(entry).encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            with naming(Path(self._file.name)):
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(end)
            raise
        if _is_evaluation(entry):
            self.evaluated.add(iteration)
        return entry

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The iterations of metrics.jsonl, in order; its lines on evaluations are left out."""
    return [entry for entry in _read(folder) if not _is_evaluation(entry)]


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(finite(entry)) + "\n"


def _is_evaluation(entry: Mapping[str, Any]) -> bool:
    return "samples" not in entry  # which every iteration has


def _read(folder: RunFolder) -> list[dict[str, Any]]:
    """All whole lines; a process killed in mid-line leaves a broken last one."""
    path = folder.path / _NAME
    entries = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.split("\n"):
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
