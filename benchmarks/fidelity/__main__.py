"""`python -m benchmarks.fidelity STUDY`: runs what is missing, then a table, a figure and JSON."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.fidelity import summary
from benchmarks.fidelity.studies import STRIDE, STUDIES, runs_of
from benchmarks.fidelity.training import perform, write
from benchmarks.machine import describe_machine, versions

RESULTS = Path("benchmarks/results/fidelity")


def main(
    study: Annotated[str, typer.Argument(help=f"One of {', '.join(STUDIES)}.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0 on.")] = 4,
    queries: Annotated[
        int, typer.Option(min=1, help=f"Rewards a run pays for, a multiple of {STRIDE}.")
    ] = 5 * STRIDE,
    samples: Annotated[int, typer.Option(min=2, help="Images of an evaluation.")] = 140,
    results: Annotated[Path, typer.Option(help="Where runs are kept.")] = RESULTS,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
) -> None:
    """Run what is not in the results folder yet; its JSON is on the last line."""
    if study not in STUDIES:
        sys.exit(f"no study {study!r}; there are {', '.join(STUDIES)}")
    if queries % STRIDE:
        sys.exit(f"--queries {queries}: runs are compared every {STRIDE}; give a multiple")
    torch.set_num_threads(threads)
    folder, console = results / study, Console()
    for run in runs_of(study, seeds, queries):
        path = folder / f"{run.key}.json"
        if path.exists():
            continue
        result = perform(run, samples)
        write(path, result)
        last = result["evaluations"]["held out"][-1]
        console.print(f"{run.key}: {last['mean']:.4f} held out, {result['seconds']:.0f} s")
    done = summary.read(folder)
    if {result["run"]["queries"] for result in done} != {queries}:
        sys.exit(
            f"{folder} has runs of other lengths than {queries} queries: use another --results"
        )
    curves = summary.summarise(done)
    summary.draw(curves, results / f"{study}.png")
    console.print(summary.table(curves, f"{study}, held-out prompts, {samples} images each time"))
    found: dict[str, Any] = {"study": study, "curves": curves, "machine": describe_machine()}
    print(json.dumps(_finite({**found, "versions": versions()})))


def _finite(value: Any) -> Any:
    """With null for NaN, which JSON does not have: the interval of a single seed."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    typer.run(main)
