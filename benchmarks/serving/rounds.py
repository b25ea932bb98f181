"""Several ways to get scores, measured in turn, round after round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rates import ratio, rotated, summarise
from benchmarks.serving.callers import Caller
from benchmarks.serving.load import PROCESSES, Clients, Load, percentiles


@dataclass(frozen=True)
class Way:
    """One way to get scores, and how much is asked of it."""

    caller: Caller
    clients: int
    load: Load
    processes: int = PROCESSES
    """Most processes that the clients are spread among."""


def measure_ways(
    clients: Clients, ways: Mapping[str, Way], rounds: int, pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Images per second and latencies of each way.

    Args:
        clients: who calls.
        ways: by name.
        rounds: how often each is measured.
        pairs: the ways whose rates are compared.

    Returns:
        By the ways' names, and under `ratios`; ready for JSON.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    latencies: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in rotated(list(ways), turn):
            way = ways[name]
            measured = clients.run(way.caller, way.clients, way.load, way.processes)
            rates[name].append(measured.images_per_second)
            latencies[name] += measured.latencies
    return {
        **{
            name: {"images_per_second": summarise(rates[name]), **percentiles(latencies[name])}
            for name in ways
        },
        "ratios": {f"{a}/{b}": ratio(rates[a], rates[b]) for a, b in pairs},
    }
