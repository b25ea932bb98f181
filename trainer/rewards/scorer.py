"""What it is to score a batch in the background: the interface, and putting its parts together."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from salon.errors import RewardFailed, SampleError
from salon.reward.v1.reward_pb2 import ERROR_CODE_MISSING_INPUT
from salon.wire.outcomes import Outcome
from trainer.spec.prompts.rows import Row


@dataclass(frozen=True)
class Scale:
    """How to read a reward's scores, by the service that gave them."""

    unit: str = ""  # such as kB; empty for a plain number
    lower_is_better: bool = False


@dataclass(frozen=True)
class ScoredBatch:
    """What the jury said about one batch of N images."""

    per_reward: Mapping[str, NDArray[np.float64]]  # name -> [N], NaN where that reward gave none
    valid: NDArray[np.bool_]  # [N], whether every reward gave a score
    errors: tuple[SampleError, ...]
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> the versions that answered, sorted; more than one if it changed meanwhile."""
    stand_ins: frozenset[str] = frozenset()
    """Of them, those that run on a small model in place of the real one."""
    scales: Mapping[str, Scale] = field(default_factory=dict)


class RewardScorer(Protocol):
    """Anything that scores a batch in the background."""

    def submit(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        references: Sequence[str | None] | None = None,
    ) -> "Future[ScoredBatch]":
        """Start scoring `images` [N, H, W, C]; the future holds N outcomes.

        Args:
            images: the samples.
            prompts: N.
            metadata: N, of those that have any.
            references: N files, of those samples that have one of their own to be compared with.
        """
        ...


def submit_rows(
    scorer: RewardScorer, images: NDArray[np.uint8], rows: Sequence[Row]
) -> "Future[ScoredBatch]":
    """Start scoring images [N, H, W, C] of N rows: all that a row carries goes to every reward."""
    metadata = [row.metadata or None for row in rows]
    references = [row.reference for row in rows]
    return scorer.submit(
        images,
        [row.prompt for row in rows],
        metadata if any(metadata) else None,
        references if any(references) else None,
    )


class BatchAssembly:
    """Puts the parts of one batch together; only the collector thread completes it."""

    def __init__(
        self,
        future: "Future[ScoredBatch]",
        rewards: Sequence[str],
        size: int,
        on_reward_error: Literal["fail", "drop"],
        refused: Callable[[str], Exception] | None = None,
    ) -> None:
        """Put together what `rewards` say of `size` samples.

        Args:
            future: is given all of it.
            rewards: their names.
            size: of the batch.
            on_reward_error: whether a sample without a score fails the batch.
            refused: the error of a reward that is a stand-in; None where it may be one.
        """
        self._refused = refused
        self._stand_ins: set[str] = set()
        self._missing = size * len(rewards)
        self._future = future
        self._on_reward_error = on_reward_error
        self._scores = {name: np.full(size, np.nan) for name in rewards}
        self._versions: dict[str, set[str]] = {name: set() for name in rewards}
        self._scales: dict[str, Scale] = {}
        self._errors: list[SampleError] = []

    def part(self, reward: str, offset: int, count: int) -> Callable[[list[Outcome]], None]:
        """What to do with the outcomes of the `count` samples from `offset` on."""

        def collect(parts: list[Outcome]) -> None:
            if len(parts) != count:
                self.fail(
                    RewardFailed(f"reward {reward} gave {len(parts)} outcomes for {count} samples")
                )
                return
            self._versions[reward].update(outcome.version for outcome in parts)
            if any(outcome.stand_in for outcome in parts):
                self._stand_ins.add(reward)
                if self._refused is not None:
                    self.fail(self._refused(reward))
                    return
            if parts:
                self._scales[reward] = Scale(parts[0].unit, parts[0].lower_is_better)
            for index, outcome in enumerate(parts, start=offset):
                if outcome.error is not None and outcome.error.code == ERROR_CODE_MISSING_INPUT:
                    # Not this sample alone: the job would drop all that it ever sends.
                    self.fail(
                        SampleError(
                            outcome.error.code,
                            f"{outcome.error}; a job sends images, what a row of prompts carries, "
                            "and the `reference` of an entry of rewards: add what is missing, or "
                            f"take {reward} out",
                        )
                    )
                    return
                if outcome.error is not None:
                    message = f"sample {index}, reward {reward}: {outcome.error}"
                    self._errors.append(SampleError(outcome.error.code, message))
                elif outcome.score is not None:
                    self._scores[reward][index] = outcome.score
            self._missing -= count
            if self._missing == 0 and not self._future.done():
                self._complete()

        return collect

    def fail(self, error: Exception) -> None:
        """The whole batch has this error; the first one stands."""
        if not self._future.done():
            self._future.set_exception(error)

    def _complete(self) -> None:
        if self._errors and self._on_reward_error == "fail":
            first = self._errors[0]
            more = f" (and {len(self._errors) - 1} more)" if len(self._errors) > 1 else ""
            self.fail(
                SampleError(
                    first.code,
                    f"{first}{more}; `on_reward_error: drop` would leave such samples out",
                )
            )
            return
        valid = np.isfinite(np.array(list(self._scores.values()))).all(axis=0)
        versions = {name: tuple(sorted(met)) for name, met in self._versions.items()}
        self._future.set_result(
            ScoredBatch(
                self._scores,
                valid,
                tuple(self._errors),
                versions,
                frozenset(self._stand_ins),
                self._scales,
            )
        )
