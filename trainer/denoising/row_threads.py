"""Parts of a pass at once, each on threads of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

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

    def output(
        self, function: Callable[[slice], Tensor], rows: int, parameters: Sequence[Tensor]
    ) -> Tensor:
        """What `function` returns of all rows [rows, …], to be differentiated as any other output.

        The gradient of each part is computed in a thread of its own, too. Where the gradient of the
        output is 0 for all of a part, its pass is not gone through again.

        Args:
            function: of a part of the rows, its output [part, …].
            rows: how many there are.
            parameters: all that `function` depends on and that has a gradient.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self._pool is None or rows < 2:
            return function(slice(0, rows))
        if not (torch.is_grad_enabled() and trained):
            return torch.cat(self.map(torch.no_grad()(function), rows))
        output: Tensor = _Output.apply(self, function, rows, *trained)  # type: ignore[no-untyped-call]
        return output


class _Output(torch.autograd.Function):
    """Keeps the graph of each part to itself, so that threads need not meet in one."""

    @staticmethod
    def forward(
        ctx: Any,
        threads: RowThreads,
        function: Callable[[slice], Tensor],
        rows: int,
        *parameters: Tensor,
    ) -> Tensor:
        run = torch.enable_grad()(function)
        outputs = dict(threads.map(lambda part: (part.start, run(part)), rows))
        ctx.threads, ctx.rows, ctx.parameters, ctx.outputs = threads, rows, parameters, outputs
        return torch.cat([output.detach() for output in outputs.values()])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients

        def differentiate(part: slice) -> Sequence[Tensor | None]:
            own = gradient[part]
            if not own.any():
                return ()
            output = ctx.outputs.pop(part.start)
            found: Sequence[Tensor | None]
            found = torch.autograd.grad(output, ctx.parameters, own, allow_unused=True)
            return found

        # Added in the order of parts: in which order threads end is up to chance.
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        for part in ctx.threads.map(differentiate, ctx.rows):
            for i, found in enumerate(part):
                if found is not None:
                    so_far = sums[i]
                    sums[i] = found if so_far is None else so_far.add_(found)
        return None, None, None, *sums
