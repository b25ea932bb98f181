"""Clients in processes of their own, all of them as busy as the server lets them be."""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import numpy as np

from benchmarks.photographs import cut_squares, find_photographs
from benchmarks.serving.callers import Call, Caller, Images

PROCESSES = 4
"""Client processes, among which the clients are spread, as threads."""
WAIT_SECONDS = 60.0

_start: Barrier | None = None


@dataclass(frozen=True)
class Load:
    """What one client does: one request after another, for a while."""

    images_per_request: int
    size: int
    """Height and width of the images, in pixels."""
    seconds: float


@dataclass(frozen=True)
class Result:
    """What came of it."""

    images_per_second: float
    latencies: list[float]
    """Of each request, in seconds."""


@dataclass(frozen=True)
class _Part:
    """What came of one process's clients; times are of one clock for the whole host."""

    start: float
    end: float
    latencies: list[float]


class Clients:
    """A number of clients, ready to run."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def run(self, caller: Caller, clients: int, load: Load, processes: int = PROCESSES) -> Result:
        """`clients` clients at once, each with a connection of its own, in so many processes.

        None begins a request after `load.seconds`. Those under way then are waited for, and they
        count: to drop them would drop the slow ones. So the rate is that of all requests over the
        time until the last of them ended.
        """
        used = min(processes, clients)
        shares = [len(range(first, clients, used)) for first in range(used)]
        together = used == PROCESSES
        runs = [self._pool.submit(_run_share, caller, n, load, together) for n in shares]
        parts = [run.result() for run in runs]
        latencies = [latency for part in parts for latency in part.latencies]
        seconds = max(part.end for part in parts) - min(part.start for part in parts)
        return Result(len(latencies) * load.images_per_request / seconds, latencies)


@contextmanager
def client_processes() -> Iterator[Clients]:
    """Start the processes, once for all measurements."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, context, _prepare, (start,)) as pool:
        yield Clients(pool)


def _prepare(start: Barrier) -> None:
    global _start  # noqa: PLW0603 - a barrier reaches a process only as it starts
    _start = start


def _run_share(caller: Caller, clients: int, load: Load, together: bool) -> _Part:
    """What this process's clients did; with `together` all processes begin at once."""
    images = cut_squares(find_photographs(), load.images_per_request, load.size)
    calls = [caller.connect() for _ in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(lambda call: call(images), calls))  # connected, and warm
        if together and _start is not None:
            _start.wait(WAIT_SECONDS)
        start = time.monotonic()
        runs = threads.map(lambda call: _repeat(call, images, start + load.seconds), calls)
        latencies = [latency for run in runs for latency in run]
        return _Part(start, time.monotonic(), latencies)


def _repeat(call: Call, images: Images, ends: float) -> list[float]:
    latencies: list[float] = []
    end = time.monotonic()
    while not latencies or end < ends:
        begin = end
        call(images)
        end = time.monotonic()
        latencies.append(end - begin)
    return latencies


def percentiles(latencies: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}
