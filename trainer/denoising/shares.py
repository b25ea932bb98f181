"""Which samples each update trains on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def stratified_shares(
    batches: NDArray[np.int64], count: int, generator: torch.Generator
) -> list[Tensor]:
    """Deal the samples out to `count` updates, so that each gets its part of every batch.

    In random order within a batch, the batches in random order too, and one card at a time: no
    update has two samples more than another, of any batch or in all. A batch belongs to one of the
    processes that train together, so each of them has its part in every update; that the shares
    follow from the batches alone makes them the same on any number of processes.

    Args:
        batches: [N] the number of the batch that each sample was drawn in.
        count: updates.
        generator: on the CPU.

    Returns:
        min(count, N) index tensors [n], together all of 0 … N - 1. Dropped samples leave shares
        that differ by one, or fewer shares than updates.
    """
    numbers = torch.from_numpy(batches)
    dealt = torch.randperm(len(numbers), generator=generator)
    present = torch.unique(numbers)
    turn = torch.empty(int(present.max()) + 1, dtype=torch.int64)
    turn[present] = torch.randperm(len(present), generator=generator)
    dealt = dealt[turn[numbers[dealt]].argsort(stable=True)]
    return [dealt[first::count] for first in range(min(count, len(dealt)))]
