"""How fast DDPO trains beside TRL's DDPOTrainer, with rewards in-process and with rewards served.

`python -m benchmarks.ddpo` checks that both compute the same gradients, then lets TRL and Salon do
their iterations in turn, each in a process of its own. Its last line is everything it measured, as
JSON. `make .venv-trl/installed` builds the environment of TRL.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console

from benchmarks.ddpo.equality import TOLERANCE, compare_gradients
from benchmarks.ddpo.models import write_model
from benchmarks.ddpo.processes import ContenderProcess, contender
from benchmarks.ddpo.rounds import measure_rounds, summary
from benchmarks.ddpo.tables import show
from benchmarks.ddpo.workload import TRL_PYTHON, WORKLOADS, Assignment
from benchmarks.machine import describe_machine, versions
from benchmarks.parts import running_parts
from salon.errors import SalonError
from salon.settings import Settings

MODES = ("full", "lora")
ROWS_PER_FORWARD = {"tiny": 40, "sd15": 8}
"""Of Salon's update: as many (sample, timestep) pairs as are fastest on the machine in question."""
PACKAGES = ("accelerate", "diffusers", "peft", "torch", "transformers")


def measure(
    rounds: int,
    size: str,
    device: str,
    precision: str,
    trl_python: Path,
    algorithm: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the model, start the parts that score, measure full training and LoRA, stop the parts.

    Args:
        rounds: iterations of each contender.
        size: a key of `WORKLOADS`.
        device: cpu or cuda.
        precision: fp32 or bf16.
        trl_python: the interpreter of TRL's environment.
        algorithm: further hyperparameters of Salon's.

    Returns:
        Everything measured, ready for JSON.
    """
    threads = min(2, os.cpu_count() or 1)
    shape = {
        "rows_per_forward": ROWS_PER_FORWARD[size],
        "row_threads": threads if device == "cpu" else 1,
    }
    with tempfile.TemporaryDirectory(prefix="salon-ddpo-") as name, running_parts() as settings:
        folder = Path(name)
        write_model(folder / "model", size, device)
        modes = {}
        for mode in MODES:
            assignment = Assignment(
                model=str(folder / "model"),
                workload=WORKLOADS[size],
                mode=mode,
                device=device,
                precision=precision,
                threads=threads,
                seed=0,
                algorithm={**shape, **algorithm},
                settings=None,
            )
            modes[mode] = measure_mode(assignment, settings, rounds, trl_python, folder)
    return {
        "benchmark": "ddpo",
        "size": size,
        "device": device,
        "precision": precision,
        "rounds": rounds,
        "workload": vars(WORKLOADS[size]),
        "threads": threads,
        "modes": modes,
        "machine": describe_machine(),
        "versions": versions(PACKAGES),
        "ratio_vs_trl": {mode: modes[mode]["ratios"]["served/trl"]["of_medians"] for mode in modes},
        "served_vs_in_process": {
            mode: modes[mode]["ratios"]["served/in_process"]["of_medians"] for mode in modes
        },
    }


def measure_mode(
    assignment: Assignment, settings: Settings, rounds: int, trl_python: Path, folder: Path
) -> dict[str, Any]:
    """Full training or LoRA: compare gradients, then measure.

    Raises:
        ValueError: in fp32 on the CPU, the gradients differ by more than rounding.
    """
    trl = [str(trl_python), "-m", "benchmarks.ddpo.trl_contender"]
    salon = [sys.executable, "-m", "benchmarks.ddpo.salon_contender"]
    served = Assignment(**{**vars(assignment), "settings": _connection(settings)})
    with ExitStack() as stack:

        def start(name: str, command: list[str], told: Assignment) -> ContenderProcess:
            log = folder / f"{name}-{assignment.mode}.log"
            return stack.enter_context(contender(command, told, log))

        contenders = {
            "trl": start("trl", trl, assignment),
            "in_process": start("in_process", salon, assignment),
            "served": start("served", salon, served),
        }
        equality = None
        if assignment.precision == "fp32":
            equality = compare_gradients(contenders["in_process"], contenders["trl"], folder)
            # A GPU rounds the factors of products to 10 bits, in TRL by default.
            exact = assignment.device == "cpu"
            if exact and max(equality["gradient"], equality["loss"]) > TOLERANCE:
                raise ValueError(
                    f"{assignment.mode}: Salon and TRL do not compute alike: {equality}"
                )
        measured = measure_rounds(contenders, rounds)
        utilisation = contenders["in_process"].ask("operations")
    result = summary(measured, assignment.workload.samples)
    seconds = result["in_process"]["seconds"]["median"]
    share = utilisation["operations"] / seconds / utilisation["matmul_rate"]
    return {**result, "equality": equality, "utilisation": {**utilisation, "matmul_share": share}}


def _connection(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Iterations of each contender.")] = 5,
    size: Annotated[str, typer.Option(help="tiny, or sd15 for a GPU.")] = "tiny",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    trl_python: Annotated[Path, typer.Option(help="The Python of TRL's environment.")] = TRL_PYTHON,
    algorithm: Annotated[
        list[str] | None,
        typer.Argument(help="Hyperparameters of Salon's alone, such as rows_per_forward=16."),
    ] = None,
) -> None:
    """Measure, print a table, and on the last line JSON."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    print(f"measuring {rounds} rounds; what else runs on this machine spoils them", flush=True)
    changes = {}
    for change in algorithm or []:
        key, _, value = change.partition("=")
        changes[key] = yaml.safe_load(value)
    try:
        result = measure(rounds, size, device, precision, trl_python, changes)
    except (SalonError, ValueError) as error:
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
