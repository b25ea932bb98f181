"""All evaluations of one run: when they are due, where they lie, and what follows from them."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from trainer.algorithm import Generator
from trainer.evaluation.diversity import ImageEmbedder
from trainer.evaluation.held_out import Evaluation, effects, evaluate, version_warnings
from trainer.rewards.scorer import RewardScorer
from trainer.runtime.run_folder import RunFolder
from trainer.spec.rewarded_job import RewardedJob
from trainer.spec.stopping import Stop, stop_of

log = structlog.get_logger()

_NAME = re.compile(r"^(\d{6,})\.safetensors$")
BEST = "best"


@dataclass(frozen=True)
class Best:
    """The trained model with the highest value of `evaluation.keep_best`, kept in `best/`."""

    iteration: int
    metric: str
    value: float


class Evaluations:
    """The folder `evaluation/`, one file an evaluation, named by its iteration.

    Pictures are kept of the first and the last: those of every evaluation would soon be larger than
    the model. What was evaluated is never evaluated again: the loop writes a checkpoint first, so a
    resumed run has the very model that the file is about.

    Args:
        spec: the job.
        generator: what is evaluated.
        scorer: knows all rewards that are evaluated; None on a rank that does not `run` them.
        folder: the run's.
        embedder: measures diversity, if the spec asks for it.
        check: what it raises ends an evaluation between two batches.
    """

    def __init__(
        self,
        spec: RewardedJob,
        generator: Generator,
        scorer: RewardScorer | None,
        folder: RunFolder,
        embedder: ImageEmbedder | None,
        check: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.generator = generator
        self._scorer = scorer
        self._folder = folder
        self._embedder = embedder
        self._check = check
        self._done: dict[int, Evaluation] = {}
        self.best: Best | None = None

    def restore(self, iteration: int) -> None:
        """Read what was evaluated up to `iteration`, and forget what an older attempt did later.

        Later ones exist only where the checkpoint that was made for them is damaged.
        """
        found = {
            int(match[1]): path
            for path in (self._folder.path / "evaluation").glob("*")
            if (match := _NAME.match(path.name))
        }
        for number in sorted(found):
            if number <= iteration:
                self._done[number] = Evaluation.load(found[number])
            else:
                log.warning("evaluated anew", iteration=number, resumed_at=iteration)
                found[number].unlink()
        record = self._folder.path / BEST / "best.json"
        if record.exists():
            best = Best(**json.loads(record.read_text(encoding="utf-8")))
            if best.iteration <= iteration:
                self.best = best
            else:
                shutil.rmtree(record.parent)

    @property
    def stop(self) -> Stop | None:
        """Whether one of the rules ends the training."""
        history = [(number, self._done[number].metrics) for number in sorted(self._done)]
        return stop_of(self.spec.stop_when, history)

    @property
    def before(self) -> Evaluation:
        """That of the model as it came."""
        return self._done[0]

    @property
    def last(self) -> Evaluation:
        """The latest."""
        return self._done[max(self._done)]

    def history(self) -> list[dict[str, Any]]:
        """The metrics of each, with its iteration, in order."""
        return [{"iteration": i, **self._done[i].metrics} for i in sorted(self._done)]

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of them: before against after, and what happened between."""
        before, after = self.before, self.last
        return {
            **effects(self.spec, before, after),
            "evaluations": self.history(),
            "stop": None if self.stop is None else asdict(self.stop),
            "best": None if self.best is None else asdict(self.best),
            "stand_ins": sorted({*before.stand_ins, *after.stand_ins}),
            "versions": {"before": before.versions, "after": after.versions},
            "warnings": version_warnings(before, after),
        }

    def due(self, iteration: int) -> bool:
        """Whether the model is to be evaluated after so many iterations."""
        every = self.spec.evaluation.every
        ends = iteration in (0, self.spec.iterations)
        return ends or (every is not None and iteration % every == 0)

    def known(self, iteration: int) -> bool:
        """Whether that was done, in this attempt or an earlier one."""
        return iteration in self._done

    def run(self, iteration: int, save: Callable[[Path, Evaluation], None]) -> Evaluation:
        """Evaluate, unless it was done, and keep the model if it is the best so far.

        Args:
            iteration: how many made the model.
            save: writes the model, which is the best so far by this evaluation, into a folder.

        Returns:
            The evaluation, with its pictures if it was made now.
        """
        if self.known(iteration):
            return self._done[iteration]
        if self._scorer is None:
            raise RuntimeError("evaluated by another rank")
        evaluation = evaluate(
            self.generator, self._scorer, self.spec.evaluation, self._embedder, self._check
        )
        self._done[iteration] = evaluation
        self._keep_if_best(iteration, save)
        if iteration not in (0, self.spec.iterations) and self.stop is None:
            self._done[iteration] = evaluation.without_images()
        # Last: what is known was compared with the best, even if its attempt died here.
        self._done[iteration].save(self._folder, f"evaluation/{iteration:06d}.safetensors")
        return evaluation

    def _keep_if_best(self, iteration: int, save: Callable[[Path, Evaluation], None]) -> None:
        metric = self.spec.evaluation.keep_best
        evaluation = self._done[iteration]
        if metric is None or metric not in evaluation.metrics or iteration == 0:
            return
        value = evaluation.metrics[metric]
        if self.best is not None and value <= self.best.value:
            return
        self.best = Best(iteration, metric, value)
        with self._folder.folder(BEST) as path:
            save(path, evaluation)
            (path / "best.json").write_text(json.dumps(asdict(self.best)) + "\n", encoding="utf-8")
