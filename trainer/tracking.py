"""Where a run's numbers go: metrics.jsonl, boards to look at, and the job's events for `watch`."""

import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from salon.errors import naming
from salon.lease import Lease
from salon.numbers import finite, significant
from trainer.algorithm import Metrics, Preview
from trainer.boards import Board, Forgiving, Pictures, Trackio, WandB, failure
from trainer.evaluation import Evaluation, effects
from trainer.interrupt import Interrupted
from trainer.report.pictures import spread_over
from trainer.report.results import Result
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
        self._spec = spec
        self._folder = folder
        entries = [entry for entry in _read(folder) if entry["iteration"] <= iteration]
        self._evaluated = {e["iteration"] for e in entries if _is_evaluation(e)}
        folder.write_text("metrics.jsonl", "".join(_line(entry) for entry in entries))
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
        self._append(_line(entry).encode())
        for board in self._boards:
            board.scalars(iteration, metrics)
        self._lease.emit("iteration", {**entry, "iterations": self._spec.iterations})

    def evaluated(self, iteration: int, evaluation: Evaluation, before: Evaluation) -> None:
        """Note what the model after `iteration` iterations was found to be; once.

        Args:
            iteration: how many made the model.
            evaluation: of it.
            before: that of the model as it came.
        """
        if iteration in self._evaluated:
            return
        metrics = evaluation.metrics
        results = Result.all_of(effects(self._spec, before, evaluation))
        for board in self._boards:
            board.scalars(iteration, metrics)
        # Those of an evaluation that an earlier attempt made are not kept.
        if len(evaluation.images):
            shown = spread_over(evaluation.prompts, PICTURES_SHOWN)
            captions = [_caption(evaluation, results, i) for i in shown]
            self._show(iteration, "evaluation", Pictures(evaluation.images[shown], captions))
        self._append(_line({"iteration": iteration, "time": time.time(), **metrics}).encode())
        self._evaluated.add(iteration)
        text = _found(iteration, evaluation, results)
        self._lease.emit("evaluation", {"iteration": iteration, **metrics, "text": text})

    def _show(self, iteration: int, name: str, pictures: Pictures) -> None:
        for board in self._boards:
            board.pictures(iteration, name, pictures)

    def _append(self, line: bytes) -> None:
        """Write a whole line, or none if the disk is full."""
        self._folder.check()  # the file would take it, even if it were deleted
        end = self._file.seek(0, os.SEEK_END)
        try:
            with naming(Path(self._file.name)):
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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

    def result(self, summary: Mapping[str, Any]) -> None:
        """Tell whoever watches what came of it: before, after and effect size of each reward."""
        told = {key: summary[key] for key in ("rewards", "eval_rewards")}
        self._lease.emit("result", told)

    def warn(self, text: str) -> None:
        """Tell whoever watches of something that went wrong and ends nothing."""
        log.warning(text)
        self._lease.emit("warning", {"text": f"warning: {text}"})


def _found(iteration: int, evaluation: Evaluation, results: Sequence[Result]) -> str:
    """Of each reward the level before training and now, and the effect; and whatever else."""
    found = [
        f"{result.label} {result.level('before')}"
        + (f" → {result.level('after')}, effect size {result.effect}" if iteration else "")
        for result in results
    ]
    found += [f"{name} {significant(value)}" for name, value in evaluation.measures.items()]
    when = f"after iteration {iteration}" if iteration else "before training"
    return f"evaluated {when}: {'; '.join(found)}"


def _caption(evaluation: Evaluation, results: Sequence[Result], i: int) -> str:
    """`prompt | score`, with the name of each reward where several are trained on."""
    trained = [result for result in results if result.trained]
    scores = [
        ("" if len(trained) == 1 else f"{result.reward} ")
        + result.score(float(evaluation.scores[result.reward][i]))
        for result in trained
    ]
    return " | ".join([evaluation.prompts[i], *scores])


def read_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The iterations of metrics.jsonl, in order; its lines on evaluations are left out."""
    return [entry for entry in _read(folder) if not _is_evaluation(entry)]


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(finite(entry)) + "\n"


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
