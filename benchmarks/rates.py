"""Medians of interleaved rounds, and ratios of them with their spread."""

from collections.abc import Sequence
from statistics import median
from typing import Any


def summarise(rates: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every value of a rate measured once a round."""
    return {"median": median(rates), "min": min(rates), "max": max(rates), "rounds": list(rates)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The ratio of the medians; its spread is that of the ratios within each round.

    Within a round both were measured within seconds of each other, so that a change in the
    machine's load between rounds cancels out.
    """
    within = [a / b for a, b in zip(above, below, strict=True)]
    return {"of_medians": median(above) / median(below), "min": min(within), "max": max(within)}


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """`names` from another start each turn, so that none always runs after the same other one."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]
