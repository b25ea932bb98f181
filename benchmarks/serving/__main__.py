"""How fast rewards are served: Salon beside mosec and LitServe, by reference, batched, queued.

`python -m benchmarks.serving` starts every server, measures all of them in turn under the same
clients, and stops them. Its last line is everything it measured, as JSON. The peers come with
`pip install --constraint constraints.txt --requirement benchmarks/peers.txt`.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.machine import describe_machine, versions
from benchmarks.photographs import cut_squares, find_photographs
from benchmarks.serving.batching import measure_batching
from benchmarks.serving.callers import Caller, InProcess
from benchmarks.serving.folders import work_folders
from benchmarks.serving.jobs import measure_job
from benchmarks.serving.load import PROCESSES, Clients, Load, client_processes
from benchmarks.serving.rounds import Way, measure_ways
from benchmarks.serving.servers import jpeg_servers
from benchmarks.serving.tables import show
from salon.errors import SalonError
from services.rewards.jpeg import THREADS

CLIENTS = (1, 16)
REQUESTS = (1, 8)
"""Images in one request; 8 of 512 x 512 are 6.3 MB."""
PAIRS = (
    ("salon", "litserve"),
    ("salon", "mosec"),
    ("salon", "litserve_json"),
    ("salon", "litserve_workers"),
    ("salon", "mosec_workers"),
    ("salon_by_reference", "in_process"),
    ("salon_by_reference", "in_process_threads"),
)


def measure(rounds: int, seconds: float, size: int, samples: int) -> dict[str, Any]:
    """Start the servers, measure, stop them.

    Args:
        rounds: how often each thing is measured, all of them in turn.
        seconds: how long the clients are busy each time.
        size: height and width of the images, in pixels.
        samples: of the one large job.

    Returns:
        Everything measured, ready for JSON.
    """
    load_before = os.getloadavg()
    with work_folders() as (folder, shared_dir), client_processes() as clients:
        with jpeg_servers(folder, shared_dir) as callers:
            _check_equal(callers, size)
            jpeg = {
                f"{images}_per_request": {
                    f"{count}_clients": measure_callers(
                        clients, callers, count, rounds, Load(images, size, seconds)
                    )
                    for count in CLIENTS
                }
                for images in REQUESTS
            }
        batching = measure_batching(clients, folder, rounds, seconds)
        job = measure_job(rounds, samples, size, shared_dir)
    return {
        "benchmark": "serving",
        "rounds": rounds,
        "seconds": seconds,
        "size": size,
        "client_processes": PROCESSES,
        "threads": THREADS,
        "jpeg": jpeg,
        "batching": batching,
        "job": job,
        "machine": {
            **describe_machine(),
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
        "versions": {**versions(), **{peer: version(peer) for peer in ("mosec", "litserve")}},
    }


def measure_callers(
    clients: Clients, callers: Mapping[str, Caller], count: int, rounds: int, load: Load
) -> dict[str, Any]:
    """Images per second and latencies of each caller's server, under `count` clients."""
    ways = {
        name: Way(caller, count, load)
        for name, caller in callers.items()
        if not isinstance(caller, InProcess)
    }
    # What one process computes without any server is the yardstick of all: as one thread calls the
    # reward, and as the best that its user could write, with the threads that the service has.
    alone = callers["in_process"]
    ways["in_process"] = Way(alone, 1, load)
    ways["in_process_threads"] = Way(alone, THREADS, load, processes=1)
    return measure_ways(clients, ways, rounds, PAIRS)


def _check_equal(callers: Mapping[str, Caller], size: int) -> None:
    """Every server must give the scores of the reward called in-process."""
    images = cut_squares(find_photographs(), max(REQUESTS), size)
    expected = callers["in_process"].connect()(images)
    for name, caller in callers.items():
        if not np.array_equal(caller.connect()(images), expected):
            raise ValueError(f"{name} gives other scores than the reward in-process")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each thing is measured.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long, each time.")] = 1.5,
    size: Annotated[int, typer.Option(min=8, help="Height and width of the images.")] = 512,
    samples: Annotated[int, typer.Option(min=1, help="Of the one large job.")] = 512,
) -> None:
    """Measure, print tables, and on the last line JSON."""
    # What is computed in a client's process takes one thread, as the servers do.
    os.environ["OMP_NUM_THREADS"] = "1"
    # As Ctrl-C does: every server is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    print(f"measuring {rounds} rounds; what else runs on this machine spoils them", flush=True)
    try:
        result = measure(rounds, seconds, size, samples)
    except SalonError as error:
        sys.exit(str(error))
    show(result, Console())
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
