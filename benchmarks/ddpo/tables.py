"""The measurements as small tables for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = {"trl": "TRL 0.23.1", "in_process": "Salon, in-process", "served": "Salon, served"}
GIBI = 2**30


def show(result: dict[str, Any], console: Console) -> None:
    """Print what `benchmarks.ddpo.__main__.measure` returned."""
    for mode, figures in result["modes"].items():
        console.print(_table(result, mode, figures))
        equality, used = figures["equality"], figures["utilisation"]
        if equality is not None:
            console.print(
                f"gradients differ by {equality['gradient']:.1e} "
                f"and losses by {equality['loss']:.1e} in float64; by rounding, gradients by "
                f"{equality['gradient_float32']:.1e} in float32"
            )
        console.print(
            f"{used['operations'] / 1e9:.0f} GFLOP an iteration, {used['matmul_share']:.1%} of the "
            f"{used['matmul_rate'] / 1e9:.0f} GFLOP/s of a matrix product; "
            f"others used up to {max(figures['others_load']):.2f} cores"
        )


def _table(result: dict[str, Any], mode: str, figures: dict[str, Any]) -> Table:
    work = result["workload"]
    table = Table(
        title=f"DDPO {mode}, {result['size']}, {result['precision']} on {result['device']}: "
        f"samples/s\n{work['samples']} samples an iteration, {work['steps']} steps, median of "
        f"{result['rounds']} (range)",
    )
    table.add_column("reward")
    for name in ("end to end", "sampling", "update", "peak GiB"):
        table.add_column(name, justify="right")
    for way, name in NAMES.items():
        rate = figures[way]["samples_per_second"]
        table.add_row(
            name,
            f"{rate['median']:.2f} ({rate['min']:.2f}–{rate['max']:.2f})",
            f"{figures[way]['sampling_samples_per_second']:.2f}",
            f"{figures[way]['update_samples_per_second']:.2f}",
            f"{figures[way]['peak_bytes'] / GIBI:.2f}",
        )
    table.add_section()
    for pair, ratio in figures["ratios"].items():
        above, below = (NAMES[way] for way in pair.split("/"))
        table.add_row(f"{above} / {below}", _ratio(ratio), "", "", "")
    phases = figures["served_vs_trl"]
    table.add_row(
        "served / TRL by phase", "", _ratio(phases["sampling"]), _ratio(phases["update"]), ""
    )
    return table


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['of_medians']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})"
