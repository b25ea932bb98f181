"""Parts of a pass at once, each on threads of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

import torch

T = TypeVar("T")


class RowThreads:
    """Splits the rows of a pass over threads, which share torch's threads among them.

    On a CPU torch splits each operation over its threads and waits for the last of them; threads
    that take whole rows through all of a UNet wait once. They take turns in Python, though: it
    pays where a pass lasts a tenth of a second or more (`row_threads` in docs/ddpo.md).

    Args:
        count: parts at a time; 1 leaves passes whole, in the thread that asks for them.
    """

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, "rows") if count > 1 else None

    def map(self, function: Callable[[slice], T], rows: int) -> list[T]:
        """What `function` returns of each part of `rows`, in their order.

        Modes that are a thread's own (autocast, no_grad, inference_mode) are not inherited:
        `function` enters them.

        Raises:
            Exception: the first part's that raised one, once all have ended.
        """
        parts = min(self._count, rows)
        if self._pool is None or parts < 2:
            return [function(slice(0, rows))]
        bounds = [rows * i // parts for i in range(parts + 1)]
        threads = torch.get_num_threads()
        each = max(1, threads // parts)

        def run(part: slice) -> T:
            torch.set_num_threads(each)  # of this thread, and of those that start later
            return function(part)

        try:
            futures = [self._pool.submit(run, slice(*ends)) for ends in pairwise(bounds)]
            wait(futures)
        finally:
            torch.set_num_threads(threads)
        return [future.result() for future in futures]
