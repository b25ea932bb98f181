"""The measurements as two small tables for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = {
    "in_process": "in-process",
    "grpc": "gRPC",
    "queue": "queue",
    "queue_by_reference": "by reference",
}


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `benchmarks.scoring.measure` returned."""
    console.print(_scoring(result), _training(result["training"], result["rounds"]))
    machine = result["machine"]
    load = f"{machine['load_before'][0]:.1f} before, {machine['load_after'][0]:.1f} after"
    console.print(f"{machine['cpus']} CPUs ({machine['processor']}), load average {load}")
    if machine["load_before"][0] > 0.5:
        console.print("The machine was not idle: take the ratios as rough, the rates as too low.")


def _scoring(result: dict[str, Any]) -> Table:
    size, images, batch = result["size"], result["images"], result["batch"]
    table = Table(
        title=f"JPEG reward, {size}x{size} RGB: images/s\n"
        f"{images} images in batches of {batch}, median of {result['rounds']} rounds (range)",
    )
    table.add_column("")
    table.add_column("one batch in flight", justify="right")
    table.add_column(
        f"all {result['batches']} in flight,\n{result['workers']} at a time", justify="right"
    )
    of_flight = list(result["scoring"].values())
    for way, name in NAMES.items():
        table.add_row(name, *(_rate(rates[way]) for rates in of_flight))
    table.add_section()
    for pair in of_flight[0]["ratios"]:
        name = " / ".join(NAMES[way] for way in pair.split("/"))
        table.add_row(name, *(_ratio(rates["ratios"][pair]) for rates in of_flight))
    return table


def _training(training: dict[str, Any], rounds: int) -> Table:
    algorithm = training["algorithm"]
    table = Table(
        title=f"DDPO, {training['model'].rpartition('/')[2]}: "
        f"{algorithm['samples_per_iteration']} samples an iteration\n"
        f"in batches of {algorithm['sample_batch_size']}, {algorithm['sampling_steps']} steps, "
        f"median of {rounds} iterations (range)",
    )
    table.add_column("reward")
    for name in ("samples/s", "submitting", "waiting"):
        table.add_column(name, justify="right")
    for way in ("in_process", "queue"):
        table.add_row(
            NAMES[way],
            _rate(training[way]["samples_per_second"]),
            f"{training[way]['submit_fraction']:.1%}",
            f"{training[way]['wait_fraction']:.1%}",
        )
    table.add_section()
    table.add_row("queue / in-process", _ratio(training["ratios"]["queue/in_process"]), "", "")
    return table


def _rate(rate: dict[str, Any]) -> str:
    return f"{rate['median']:.1f} ({rate['min']:.1f}–{rate['max']:.1f})"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['of_medians']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})"
