"""What the training loop asks of an algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Metrics = dict[str, float]


class State(TypedDict):
    """All that an exact resume needs, in two parts that safetensors and JSON keep exactly."""

    tensors: dict[str, Tensor]  # flat names, on the CPU
    state: dict[str, Any]  # JSON


@dataclass(frozen=True)
class Preview:
    """Images of prompts and seeds that stay the same for the whole run."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


class Algorithm(Protocol):
    """One way to train a generator; `trainer.loop` runs it."""

    def step(self) -> Metrics:
        """One iteration: sample, score, update.

        Raises:
            Interrupted: asked to stop; unless it was still waiting, the state is between two
                iterations, and only what `state_dict` gave before is of use.
        """
        ...

    def preview(self) -> Preview:
        """Fixed prompts and seeds, for the picture log."""
        ...

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images [N, H, W, 3], each a function of its own prompt and seed."""
        ...

    def kl(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float64]:
        """[N] divergence of what `generate` does from what it did before training.

        Averaged over all that is drawn for a sample (dimensions, steps), so that models and
        samplers of different size are comparable.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the trained model into `folder`, for diffusers to load."""
        ...

    def state_dict(self) -> State:
        """All that an exact resume needs."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state_dict` was taken."""
        ...
