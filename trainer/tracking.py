"""Where a run's numbers go: metrics.jsonl, boards to look at, and the job's events for `watch`."""

import errno
import json
import os
import time
from types import TracebackType
from typing import Any, Self

import structlog

from salon.lease import Lease
from trainer.algorithm import Metrics, Preview
from trainer.boards import Board, Forgiving, Pictures, Trackio, WandB, failure
from trainer.evaluation import Evaluation
from trainer.interrupt import Interrupted
from trainer.report.notation import significant
from trainer.run_folder import RunFolder
from trainer.spec import JobSpec
from trainer.tensorboard import TensorBoard

log = structlog.get_logger()

PICTURES_SHOWN = 16


class Tracker:
    """Append-only; on resume, what lies beyond the checkpoint is cut off and written again."""

    def __init__(
        self, job: str, spec: JobSpec, folder: RunFolder, lease: Lease, iteration: int
    ) -> None:
        """Continue after `iteration`.

        Raises:
            InvalidRequest: a tracker that the job names cannot start. Where training is under way
                that is a warning.
        """
        self._lease = lease
        self._iterations = spec.iterations
        self._rewards = [reward.name for reward in spec.rewards]
        entries = [entry for entry in _read(folder) if entry["iteration"] <= iteration]
        self._evaluated = {e["iteration"] for e in entries if _is_evaluation(e)}
        folder.write_text("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
        self._file = (folder.path / "metrics.jsonl").open("ab", buffering=0)
        self._boards: list[Board] = [TensorBoard(folder.path / "tensorboard", iteration)]
        for name in spec.trackers:
            try:
                board = self._start(name, job, spec, folder)
            except Exception as error:
                if iteration == 0:
                    raise
                log.exception("tracker cannot start", tracker=name)
                self.warn(failure(name, error))
            else:
                self._boards.append(Forgiving(name, board, self.warn))

    def _start(self, name: str, job: str, spec: JobSpec, folder: RunFolder) -> Board:
        config = spec.model_dump(mode="json")
        if name == "wandb":
            return WandB(job, spec.name, config, folder.path)
        return Trackio(job, spec.name, config)

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
            failed = error is not None and not isinstance(error, Interrupted)
            for board in self._boards:
                board.close(failed)

    def record(self, iteration: int, metrics: Metrics) -> None:
        """Note the numbers of one finished iteration, counted from 1."""
        entry = {"iteration": iteration, "time": time.time(), **metrics}
        self._append(json.dumps(entry).encode() + b"\n")
        for board in self._boards:
            board.scalars(iteration, metrics)
        self._lease.emit("iteration", {**entry, "iterations": self._iterations})

    def evaluated(self, iteration: int, evaluation: Evaluation) -> None:
        """Note what the model after `iteration` iterations was found to be; once."""
        if iteration in self._evaluated:
            return
        metrics = evaluation.metrics
        for board in self._boards:
            board.scalars(iteration, metrics)
        # Those of an evaluation that an earlier attempt made are not kept.
        if len(evaluation.images):
            shown = evaluation.images[:PICTURES_SHOWN]
            captions = [self._caption(evaluation, i) for i in range(len(shown))]
            self._show(iteration, "evaluation", Pictures(shown, captions))
        self._append(
            json.dumps({"iteration": iteration, "time": time.time(), **metrics}).encode() + b"\n"
        )
        self._evaluated.add(iteration)
        found = ", ".join(
            f"{name.removeprefix('eval/').removesuffix('/mean')} {significant(value)}"
            for name, value in metrics.items()
            if not name.endswith("/std")
        )
        text = f"evaluated after iteration {iteration}: {found}"
        self._lease.emit("evaluation", {"iteration": iteration, **metrics, "text": text})

    def _caption(self, evaluation: Evaluation, i: int) -> str:
        """`prompt | reward`, with the name of each where several are trained on."""
        scores = [
            ("" if len(self._rewards) == 1 else f"{reward} ")
            + significant(float(evaluation.scores[reward][i]))
            for reward in self._rewards
        ]
        return " | ".join([evaluation.prompts[i], *scores])

    def _show(self, iteration: int, name: str, pictures: Pictures) -> None:
        for board in self._boards:
            board.pictures(iteration, name, pictures)

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
        self._show(iteration, "preview", Pictures(preview.images, preview.prompts))

    def stage(self, text: str) -> None:
        """Tell whoever watches what goes on between iterations."""
        log.info(text)
        self._lease.emit("stage", {"text": text})

    def warn(self, text: str) -> None:
        """Tell whoever watches of something that went wrong and ends nothing."""
        log.warning(text)
        self._lease.emit("warning", {"text": f"warning: {text}"})


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The iterations of metrics.jsonl, in order; its lines on evaluations are left out."""
    return [entry for entry in _read(folder) if not _is_evaluation(entry)]


def _is_evaluation(entry: dict[str, Any]) -> bool:
    return "samples" not in entry  # which every iteration has


def _read(folder: RunFolder) -> list[dict[str, Any]]:
    """All whole lines; a process killed in mid-line leaves a broken last one."""
    path = folder.path / "metrics.jsonl"
    entries = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.split("\n"):
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
