"""`python -m benchmarks.fidelity STUDY`: runs what is missing, then a table, a figure and JSON."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.fidelity import summary
from benchmarks.fidelity.studies import STRIDE, STUDIES, Run, runs_of
from benchmarks.fidelity.training import perform, write
from benchmarks.machine import describe_machine, versions
from salon.numbers import finite

RESULTS = Path("benchmarks/results/fidelity")


def main(
    study: Annotated[str, typer.Argument(help=f"One of {', '.join(STUDIES)}.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0 on.")] = 4,
    queries: Annotated[
        int, typer.Option(min=1, help=f"Rewards a run pays for, a multiple of {STRIDE}.")
    ] = 3 * STRIDE,
    samples: Annotated[int, typer.Option(min=2, help="Images of an evaluation.")] = 140,
    results: Annotated[Path, typer.Option(help="Where runs are kept.")] = RESULTS,
    processes: Annotated[
        int, typer.Option(min=1, help="Runs at a time, each with one thread of torch.")
    ] = os.cpu_count() or 1,
) -> None:
    """Run what is not in the results folder yet; its JSON is on the last line."""
    if study not in STUDIES:
        sys.exit(f"no study {study!r}; there are {', '.join(STUDIES)}")
    if queries % STRIDE:
        sys.exit(f"--queries {queries}: runs are compared every {STRIDE}; give a multiple")
    folder = results / "runs"
    missing = [
        run for run in runs_of(study, seeds, queries) if not (folder / f"{run.key}.json").exists()
    ]
    for run, result in _performed(missing, samples, processes):
        write(folder / f"{run.key}.json", result)
        last = result["evaluations"]["held out"][-1]
        print(f"{run.key}: {last['mean']:.4f} held out, {result['seconds']:.0f} s", flush=True)
    done = summary.read(folder, STUDIES[study], seeds)
    if {result["run"]["queries"] for result in done} != {queries}:
        sys.exit(
            f"{folder} has runs of other lengths than {queries} queries: use another --results"
        )
    curves = summary.summarise(STUDIES[study], done)
    summary.draw(STUDIES[study], curves, results / f"{study}.png")
    print(summary.table(curves))
    found: dict[str, Any] = {"study": study, "curves": curves, "machine": describe_machine()}
    print(json.dumps(finite({**found, "versions": versions()})))


def _performed(
    runs: Sequence[Run], samples: int, processes: int
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each run and its result, as soon as it is there."""
    with ProcessPoolExecutor(
        processes, get_context("spawn"), torch.set_num_threads, (1,), max_tasks_per_child=1
    ) as pool:
        futures = {pool.submit(perform, run, samples): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()


if __name__ == "__main__":
    typer.run(main)
