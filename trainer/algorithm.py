"""What the training loop asks of an algorithm, and what an algorithm may offer beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from salon.jobs.questions import Question

__all__ = [
    "Algorithm",
    "Asking",
    "Divergent",
    "Generator",
    "Metrics",
    "Preview",
    "Question",
    "State",
    "Step",
]

Metrics = dict[str, float]


class State(TypedDict):
    """All that an exact resume needs, in two parts that safetensors and JSON keep exactly."""

    tensors: dict[str, Tensor]  # flat names, on the CPU, copies
    state: dict[str, Any]  # JSON, a copy


@dataclass(frozen=True)
class Step:
    """What one iteration came to."""

    samples: int
    """Drawn and judged in it."""
    waited_seconds: float = 0.0
    """How long it waited for their rewards."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Whatever else is worth a curve; `rewards/<name>/mean` and `/std` are shown as rewards."""
    question: Question | None = None
    """What a person is asked before the next one; for an algorithm that is `Asking`. Every process
    of the job gives the same."""


@dataclass(frozen=True)
class Preview:
    """Images of prompts and seeds that stay the same for the whole run."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


class Algorithm(Protocol):
    """One way to train; `trainer.loop` runs it."""

    def step(self) -> Step:
        """One iteration.

        Raises:
            Interrupted: asked to stop; unless it was still waiting, the state is between two
                iterations, and only what `state_dict` gave before is of use.
        """
        ...

    def state_dict(self) -> State:
        """All that an exact resume needs, copied: no later step may change it."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state_dict` was taken."""
        ...


@runtime_checkable
class Asking(Protocol):
    """Beside it, where a step may end with a question."""

    def answer(self, answers: Sequence[Any]) -> None:
        """Take in what a person said to the question of the last step, before the next one.

        Days may lie between, and a process that was started anew from `state_dict` as it was after
        that step. It gets the same answers again if it dies before there is a later checkpoint.

        Args:
            answers: one for each of the question's items, in order; each is one of its choices, or
                where there are none any JSON value.
        """
        ...


@runtime_checkable
class Generator(Protocol):
    """Beside it, where there is something to show, to evaluate and to save.

    Of several ranks the first alone is asked for that: none of it may wait for the others.
    """

    def preview(self) -> Preview:
        """Fixed prompts and seeds, for the picture log."""
        ...

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images [N, H, W, 3], each a function of its own prompt and seed."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained model into `folder`, for others to load."""
        ...


@runtime_checkable
class Divergent(Protocol):
    """Beside a generator that knows how far it has gone from what it was; asked like that, too."""

    def kl(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float64]:
        """[N] divergence of what `generate` does from what it did before training.

        Averaged over all that is drawn for a sample (dimensions, steps), so that models and
        samplers of different size are comparable.
        """
        ...
