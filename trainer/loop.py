"""The loop that runs every algorithm: iterations, tracking, checkpoints, evaluation, the result."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from salon.errors import SalonError
from salon.jobs.lease import Lease, LeaseLost
from trainer.algorithm import Algorithm, Asking, Generator, Metrics, Question, Step
from trainer.evaluation.evaluations import Evaluations
from trainer.evaluation.held_out import Evaluation, effects
from trainer.result import save_model, write_result
from trainer.rewards.versions import RewardVersions
from trainer.runtime.checkpoints import Checkpoint, Checkpoints
from trainer.runtime.interrupt import Interrupt, Interrupted, Suspended
from trainer.runtime.ranks import PASSING, Ranks
from trainer.runtime.run_folder import RunFolder
from trainer.spec.job_spec import JobSpec
from trainer.spec.yaml import dump
from trainer.tracking.tracker import Tracker

log = structlog.get_logger()

ANSWER_POLL_SECONDS = 0.2


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
        lease: Lease,
        ranks: Ranks | None = None,
        answer_seconds: float = 0.0,
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
            lease: in whose name people are asked.
            ranks: that share it; None for this process alone.
            answer_seconds: how long to wait for an answer before the job is suspended.

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
        self._lease = lease
        self._ranks = ranks or Ranks.alone()
        self._answer_seconds = answer_seconds
        self._totals = Totals()
        self.iteration = 0
        self._question: Question | None = None  # to be answered before the next iteration
        if checkpoint := checkpoints.latest():
            algorithm.load_state_dict(checkpoint.algorithm)
            self._totals = Totals(**checkpoint.loop)
            self.iteration = checkpoint.iteration
            versions.load_state_dict(checkpoint.versions)
            self._question = checkpoint.question
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
            Suspended: likewise, as that asked what nobody has answered yet.
            SalonError: the job cannot go on.
        """
        if tracker is not None:
            resolved = self._spec.model_dump(mode="json")
            self._folder.write_text("spec.yaml", dump(resolved))
        try:
            self._evaluate(tracker)
            while self.iteration < self._spec.iterations and not self._is_stopped():
                self._ranks.agree(self._interrupt.pending())
                self._hear()
                self._iterate(tracker)
                self._evaluate(tracker)
            self._checkpoint()  # also of a job without evaluations: it may be continued
        except Interrupted:
            self._checkpoint()
            raise
        except (LeaseLost, *PASSING):
            raise  # nothing can be written any more
        except Exception:
            self._keep_whole()
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
        self._totals.samples += int(step.samples)
        self._totals.seconds += seconds
        self._totals.reward_wait_seconds += float(step.waited_seconds)
        if tracker is not None:
            tracker.record(self.iteration, _metrics(step, seconds))
        if step.question is not None:
            self._question = step.question.asked_after(self.iteration)
            self._checkpoint()  # so that what people see is never another question
        if self.iteration % self._spec.checkpoint_every == 0:
            self._checkpoint()
            if tracker is not None and isinstance(self._algorithm, Generator):
                tracker.pictures(self.iteration, self._algorithm.preview())

    def _hear(self) -> None:
        """If the last iteration asked something, ask it, and give the algorithm the answers.

        Raises:
            Suspended: there are none yet.
            Interrupted: asked to stop while waiting for them.
            SalonError: the algorithm does not listen.
        """
        question, algorithm = self._question, self._algorithm
        if question is None:
            return
        if not isinstance(algorithm, Asking):
            name = self._spec.algorithm.name
            raise SalonError(f"algorithm {name} asks a question, but has no method `answer`")
        self._by_first(lambda: self._lease.ask(question))
        deadline = time.monotonic() + self._answer_seconds
        answers = self._answers(question)
        while answers is None:
            self._ranks.agree(self._interrupt.pending())
            if self._ranks.largest(int(time.monotonic() >= deadline)):
                raise Suspended(question)
            time.sleep(ANSWER_POLL_SECONDS)
            answers = self._answers(question)
        self._question = None
        algorithm.answer(answers)

    def _answers(self, question: Question) -> list[Any] | None:
        """The same on every rank, though each of them looks when it comes to it."""
        found: list[list[Any] | None] = []
        self._by_first(lambda: found.append(self._lease.answers(question)))
        is_answered = self._ranks.largest(int(bool(found) and found[0] is not None))
        # What is answered stays so: whoever looks later finds it, too.
        return self._lease.answers(question) if is_answered else None

    def _keep_whole(self) -> None:
        """Save what an iteration that failed began with: a job that is resumed goes on from there.

        Without the other ranks, which may be anywhere.
        """
        if self._whole is None or not self._ranks.first:
            return
        try:
            self._checkpoints.save(self._whole)
        except Exception:  # of the two errors, the first is the cause
            log.exception("cannot save the last whole iteration")

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
            self._question,
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
    samples, waited = float(step.samples), float(step.waited_seconds)
    return {
        # Numbers of numpy or torch are none of JSON's.
        **{name: float(value) for name, value in step.metrics.items()},
        "samples": samples,
        "reward_wait_seconds": waited,
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "reward_wait_fraction": waited / seconds,
    }
