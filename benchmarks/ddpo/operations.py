"""How much a trainer computes, and how fast the machine could."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDES = {"cpu": 1024, "cuda": 8192}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPEATS = 10


def count_operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in `call`.

    A multiplication and an addition are two. Those of a compiled model, or of other threads, are
    not seen.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def matmul_rate(device: str, precision: str) -> float:
    """Operations a second of the product of two square matrices, the best of a few.

    Args:
        device: cpu or cuda.
        precision: fp32 or bf16.
    """
    side = SIDES[device]
    left, right = torch.randn(2, side, side, device=device, dtype=PRECISIONS[precision])
    seconds = []
    for _ in range(REPEATS):
        _synchronize(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
