"""The loop that runs every algorithm: iterations, tracking, checkpoints, evaluation, the result."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salon.errors import SalonError
from trainer.algorithm import Algorithm, Generator, Metrics, Step
from trainer.evaluation.evaluations import Evaluations
from trainer.evaluation.held_out import Evaluation, effects
from trainer.result import save_model, write_result
from trainer.rewards.versions import RewardVersions
from trainer.runtime.checkpoints import Checkpoint, Checkpoints
from trainer.runtime.interrupt import Interrupt, Interrupted
from trainer.runtime.ranks import Ranks
from trainer.runtime.run_folder import RunFolder
from trainer.spec.job_spec import JobSpec
from trainer.spec.yaml import dump
from trainer.tracking.tracker import Tracker


@dataclass
class Totals:
    """Counters over all attempts of the job."""

    samples: int = 0
    seconds: float = 0.0
    reward_wait_seconds: float = 0.0


class Loop:
    """One job from its last checkpoint to its report.

    Every rank runs it, so that all meet in the collectives of the algorithm. What is done once is
    done by rank 0, while the others wait: it alone has a tracker, and writes.
    """

    def __init__(
        self,
        job: str,
        spec: JobSpec,
        algorithm: Algorithm,
        evaluations: Evaluations | None,
        folder: RunFolder,
        checkpoints: Checkpoints,
        interrupt: Interrupt,
        versions: RewardVersions,
        ranks: Ranks | None = None,
    ) -> None:
        """Restore the newest checkpoint, if there is one.

        Args:
            job: its id.
            spec: what it is.
            algorithm: what its iterations are.
            evaluations: None for a job of which nothing is evaluated.
            folder: the run's.
            checkpoints: in that folder.
            interrupt: asks it to stop.
            versions: of the rewards that the job meets.
            ranks: that share it; None for this process alone.

        Raises:
            SalonError: the ranks do not see the same run folder.
        """
        self._job = job
        self._spec = spec
        self._algorithm = algorithm
        self._evaluations = evaluations
        self._folder = folder
        self._checkpoints = checkpoints
        self._interrupt = interrupt
        self._versions = versions
        self._ranks = ranks or Ranks.alone()
        self._totals = Totals()
        self.iteration = 0
        if checkpoint := checkpoints.latest():
            algorithm.load_state_dict(checkpoint.algorithm)
            self._totals = Totals(**checkpoint.loop)
            self.iteration = checkpoint.iteration
            versions.load_state_dict(checkpoint.versions)
        self._saved = self.iteration
        self._whole: Checkpoint | None = None  # of the last whole iteration, while one is under way
        self._check_one_folder()
        if self._ranks.first and evaluations is not None:
            evaluations.restore(self.iteration)

    def _check_one_folder(self) -> None:
        newest = self._ranks.largest(self.iteration)
        error = None
        if newest != self.iteration:
            error = SalonError(
                f"rank {self._ranks.rank} finds iteration {self.iteration} in {self._folder.path}, "
                f"another rank {newest}: the run folder must be on a file system that all share"
            )
        self._ranks.agree(error)

    def run(self, tracker: Tracker | None) -> None:
        """Train to the end and write the result and the report.

        Args:
            tracker: of rank 0; None on the others.

        Raises:
            Interrupted: after a checkpoint of the last finished iteration.
            SalonError: the job cannot go on.
        """
        if tracker is not None:
            resolved = self._spec.model_dump(mode="json")
            self._folder.write_text("spec.yaml", dump(resolved))
        try:
            self._evaluate(tracker)
            while self.iteration < self._spec.iterations and not self._is_stopped():
                self._ranks.agree(self._interrupt.pending())
                self._iterate(tracker)
                self._evaluate(tracker)
        except Interrupted:
            self._checkpoint()
            raise
        if tracker is not None:
            parts = (self._algorithm, self._evaluations, self._folder, tracker)
            write_result(self._spec, self._summary(), *parts)

    def _is_stopped(self) -> bool:
        stop = None if self._evaluations is None else self._evaluations.stop
        return self._ranks.largest(int(stop is not None)) > 0

    def _by_first(self, action: Callable[[], object]) -> None:
        """Let rank 0 do what is done once; all ranks end if it fails.

        Raises:
            Exception: what `action` raised, on rank 0.
            Interrupted, SalonError: the same on the others, as `Ranks.agree` has it.
        """
        error = None
        if self._ranks.first:
            try:
                action()
            except Exception as failure:  # noqa: BLE001 - raised by `agree`
                error = failure
        self._ranks.agree(error)

    def _iterate(self, tracker: Tracker | None) -> None:
        # An iteration may take longer than a host that stops can wait, so it may end midway: then
        # this is what the job goes on from.
        if self._saved != self.iteration:
            self._whole = self._state()
        start = time.perf_counter()
        step = self._algorithm.step()
        self._whole = None
        seconds = time.perf_counter() - start
        self.iteration += 1
        self._totals.samples += step.samples
        self._totals.seconds += seconds
        self._totals.reward_wait_seconds += step.waited_seconds
        if tracker is not None:
            tracker.record(self.iteration, _metrics(step, seconds))
        if self.iteration % self._spec.checkpoint_every == 0:
            self._checkpoint()
            if tracker is not None and isinstance(self._algorithm, Generator):
                tracker.pictures(self.iteration, self._algorithm.preview())

    def _checkpoint(self) -> None:
        if self._saved == self.iteration:
            return
        checkpoint = self._whole or self._state()  # of all ranks, which may have to meet for it
        self._by_first(lambda: self._checkpoints.save(checkpoint))
        self._saved = self.iteration

    def _state(self) -> Checkpoint:
        return Checkpoint(
            self.iteration,
            self._algorithm.state_dict(),
            dataclasses.asdict(self._totals),
            self._versions.state_dict(),
        )

    def _evaluate(self, tracker: Tracker | None) -> None:
        """Evaluate if it is time to, of a state that a checkpoint holds."""
        evaluations = self._evaluations
        if evaluations is None or not evaluations.due(self.iteration):
            return
        # Rank 0 alone knows; the others have read none.
        known = self._ranks.largest(int(evaluations.known(self.iteration))) > 0
        if not known and self.iteration > 0:
            self._checkpoint()
        self._by_first(lambda: self._evaluate_now(evaluations, tracker))

    def _evaluate_now(self, evaluations: Evaluations, tracker: Tracker | None) -> None:
        if tracker is None:
            return
        if not evaluations.known(self.iteration):
            samples = evaluations.spec.evaluation.samples
            tracker.stage(f"evaluating after iteration {self.iteration}: {samples} samples")

        def save_best(folder: Path, evaluation: Evaluation) -> None:
            save_model(folder, evaluations, self._summary(), evaluation, is_best=True)

        evaluation = evaluations.run(self.iteration, save_best)
        found = effects(evaluations.spec, evaluations.before, evaluation)
        tracker.evaluated(self.iteration, evaluation, found)
        if stop := evaluations.stop:
            tracker.stage(f"stopped by a rule of stop_when: {stop.rule}")

    def _summary(self) -> dict[str, Any]:
        totals = self._totals
        return {
            "job": self._job,
            "algorithm": self._spec.algorithm.name,
            "iterations": self.iteration,
            "samples": totals.samples,
            "seconds": totals.seconds,
            "samples_per_second": totals.samples / totals.seconds,
            "reward_wait_fraction": totals.reward_wait_seconds / totals.seconds,
            **({} if self._evaluations is None else self._evaluations.summary()),
        }


def _metrics(step: Step, seconds: float) -> Metrics:
    """What is known of an iteration, with its rates."""
    return {
        **step.metrics,
        "samples": float(step.samples),
        "reward_wait_seconds": step.waited_seconds,
        "seconds": seconds,
        "samples_per_second": step.samples / seconds,
        "reward_wait_fraction": step.waited_seconds / seconds,
    }
