"""How fast images are scored in-process, by gRPC and through the queue, and what DDPO loses by it.

Through the queue the pixels go by Redis, or lie in a shared directory.

`python -m benchmarks.scoring` starts Redis, the jpeg service and a scoring worker as the local
stack does, measures, and stops them. Its last line is everything it measured, as JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console

from benchmarks.machine import describe_machine, versions
from benchmarks.parts import running_parts
from benchmarks.photographs import cut_squares, find_photographs
from benchmarks.rates import ratio, rotated, summarise
from benchmarks.serving.folders import work_folders
from benchmarks.tables import show
from benchmarks.training import measure_training
from benchmarks.ways import (
    REWARD,
    WORKERS,
    Images,
    Submit,
    all_ways,
    score_one_by_one,
    score_overlapped,
)
from salon.errors import SalonError
from salon.settings import Settings
from services.rewards.jpeg import VERSION
from trainer.denoising.job import DenoisingJob
from trainer.spec.file import load_spec

JOB = Path("jobs/ddpo-compressibility-tiny.yaml")
BATCH = 8  # images; DDPO's default sample_batch_size. Of 512 x 512 they are 6.3 MB, one message.
RATIOS = (
    ("grpc", "in_process"),
    ("queue", "grpc"),
    ("queue_by_reference", "grpc"),
    ("queue", "in_process"),
)
IN_FLIGHT = {"one": score_one_by_one, "all": score_overlapped}


def measure(rounds: int, images: int, size: int, spec: DenoisingJob) -> dict[str, Any]:
    """Start the parts, measure scoring and training, stop the parts.

    Args:
        rounds: how often each thing is measured, all of them in turn.
        images: how many are scored in one measurement.
        size: their height and width, in pixels.
        spec: the DDPO job whose speed is measured; its rewards are not used, the JPEG reward is.

    Returns:
        Everything measured, ready for JSON; rates are images, or samples, per second.
    """
    files = find_photographs()
    squares = cut_squares(files, images, size)
    batches = [squares[start : start + BATCH] for start in range(0, images, BATCH)]
    load_before = os.getloadavg()
    with work_folders() as (_, shared_dir), running_parts(shared_dir) as settings:
        scoring = measure_scoring(settings, rounds, batches)
        through_redis = settings.model_copy(update={"shared_dir": None})
        training = measure_training(through_redis, rounds, spec)
    return {
        "benchmark": "scoring",
        "reward": {"name": REWARD, "version": VERSION},
        "rounds": rounds,
        "images": images,
        "size": size,
        "batch": BATCH,
        "batches": len(batches),
        "workers": WORKERS,
        "photographs": [file.name for file in files],
        "scoring": scoring,
        "training": training,
        "machine": {
            **describe_machine(),
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
        "versions": versions(),
    }


def measure_scoring(
    settings: Settings, rounds: int, batches: Sequence[Images]
) -> dict[str, dict[str, Any]]:
    """Images per second of each way, with one batch in flight and with all of them.

    Raises:
        ValueError: the ways do not give the same scores.
    """
    with all_ways(settings) as ways:
        _check_equal(ways, batches)
        rates: dict[str, dict[str, list[float]]] = {
            flight: {name: [] for name in ways} for flight in IN_FLIGHT
        }
        for turn in range(rounds):
            for flight, score in IN_FLIGHT.items():
                for name in rotated(list(ways), turn):
                    start = time.perf_counter()
                    scores = score(ways[name], batches)
                    rates[flight][name].append(len(scores) / (time.perf_counter() - start))
    return {
        flight: {
            **{name: summarise(values) for name, values in of_way.items()},
            "ratios": {f"{a}/{b}": ratio(of_way[a], of_way[b]) for a, b in RATIOS},
        }
        for flight, of_way in rates.items()
    }


def _check_equal(ways: dict[str, Submit], batches: Sequence[Images]) -> None:
    """Score everything once by every way; this warms them up as well."""
    scores = {name: score_overlapped(submit, batches) for name, submit in ways.items()}
    for name, values in scores.items():
        if not np.array_equal(values, scores["in_process"]):
            raise ValueError(f"{name} gives other scores than in_process: {values}")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each thing is measured.")] = 7,
    images: Annotated[int, typer.Option(min=1, help="Images in one measurement.")] = 64,
    size: Annotated[int, typer.Option(min=8, help="Their height and width, in pixels.")] = 512,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help=f"Changes to the DDPO job {JOB}, such as model=PATH."),
    ] = None,
) -> None:
    """Measure, print tables, and on the last line JSON."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    print(f"measuring {rounds} rounds; what else runs on this machine spoils them", flush=True)
    try:
        result = measure(rounds, images, size, load_spec(JOB, overrides or []))
    except SalonError as error:
        sys.exit(str(error))
    show(result, Console())
    print(json.dumps(result))


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    """End as Ctrl-C does, once: the second must not cut short the stopping of the parts."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    print("stopping the parts", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    typer.run(main)
