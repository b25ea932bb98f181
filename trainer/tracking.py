"""Where an iteration's numbers go: metrics.jsonl, TensorBoard, and the job's events for `watch`."""

import errno
import json
import os
import time
from types import TracebackType
from typing import Any, Self

import structlog
from torch.utils.tensorboard import SummaryWriter

from salon.lease import Lease
from trainer.algorithm import Metrics, Preview
from trainer.run_folder import RunFolder

log = structlog.get_logger()


class Tracker:
    """Append-only; on resume, what lies beyond the checkpoint is cut off and written again."""

    def __init__(self, folder: RunFolder, lease: Lease, iteration: int, iterations: int) -> None:
        """Continue after `iteration` of `iterations`."""
        self._lease = lease
        self._iterations = iterations
        kept = [entry for entry in read_metrics(folder) if entry["iteration"] <= iteration]
        folder.write_text("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = (folder.path / "metrics.jsonl").open("ab", buffering=0)
        self._board: Any = SummaryWriter(str(folder.path / "tensorboard"), purge_step=iteration + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            self._board.close()

    def record(self, iteration: int, metrics: Metrics) -> None:
        """Note the numbers of one finished iteration, counted from 1."""
        entry = {"iteration": iteration, "time": time.time(), **metrics}
        self._append(json.dumps(entry).encode() + b"\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, iteration)
        self._lease.emit("iteration", {**entry, "iterations": self._iterations})

    def _append(self, line: bytes) -> None:
        """Write a whole line, or none if the disk is full."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.truncate(end)
            raise

    def pictures(self, iteration: int, preview: Preview) -> None:
        """Note what the generator now makes of the fixed prompts and seeds."""
        self._board.add_images("preview", preview.images, iteration, dataformats="NHWC")

    def stage(self, text: str) -> None:
        """Tell whoever watches what goes on between iterations."""
        log.info(text)
        self._lease.emit("stage", {"text": text})


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """All whole lines of metrics.jsonl; a process killed in mid-line leaves a broken last one."""
    path = folder.path / "metrics.jsonl"
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
