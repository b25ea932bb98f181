"""Interleaved iterations of all contenders, and their medians over the rounds nobody disturbed."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.ddpo.neighbours import Neighbours
from benchmarks.ddpo.processes import ContenderProcess
from benchmarks.rates import ratio, rotated, summarise

MOST_LOAD = 0.1
"""Cores that other programs may keep busy during an iteration whose round still counts."""
MOST_ATTEMPTS = 3
"""Rounds for each one that is asked for, if others disturb them."""
PHASES = ("seconds", "sampling", "update")
CPU = "cpu_seconds"
RATIOS = (("served", "trl"), ("in_process", "trl"), ("served", "in_process"))

Round = Mapping[str, Mapping[str, float]]


def measure_rounds(contenders: Mapping[str, ContenderProcess], rounds: int) -> list[Round]:
    """Iterations in turn, after one of each to warm up.

    Returns:
        contender -> figure -> value, of each round. Disturbed rounds are repeated up to a limit,
        and then left out if enough others remain.
    """
    for process in contenders.values():
        process.ask("iterate")
    quiet: list[Round] = []
    disturbed: list[Round] = []
    while len(quiet) < rounds and len(quiet) + len(disturbed) < MOST_ATTEMPTS * rounds:
        turn = len(quiet) + len(disturbed)
        figures = {}
        for name in rotated(list(contenders), turn):
            neighbours = Neighbours()
            figures[name] = contenders[name].ask("iterate")
            figures[name]["others_load"] = neighbours.load()
        worst = max(values["others_load"] for values in figures.values())
        (quiet if worst <= MOST_LOAD else disturbed).append(figures)
        seconds = {name: round(values["seconds"], 2) for name, values in figures.items()}
        print(f"round {turn}: {seconds}, others {worst:.2f} cores", flush=True)
    calmest_first = sorted(disturbed, key=_load)
    return quiet + calmest_first[: rounds - len(quiet)]


def summary(measured: Sequence[Round], samples: int) -> dict[str, Any]:
    """Medians, extremes and values of every contender, and the ratios of their rates.

    Args:
        measured: what `measure_rounds` returned.
        samples: of one iteration.
    """
    result: dict[str, Any] = {}
    rates = {name: [samples / r[name]["seconds"] for r in measured] for name in measured[0]}
    for name in measured[0]:
        of = [figures[name] for figures in measured]
        result[name] = {
            "samples_per_second": summarise(rates[name]),
            **{name: summarise([values[name] for values in of]) for name in (*PHASES, CPU)},
            **{
                f"{phase}_samples_per_second": samples / median(values[phase] for values in of)
                for phase in PHASES[1:]
            },
            "peak_bytes": max(values["peak_bytes"] for values in of),
        }
    result["reward_wait"] = summarise([figures["served"]["reward_wait"] for figures in measured])
    result["clip_fraction"] = summarise(
        [figures["served"]["clip_fraction"] for figures in measured]
    )
    result["ratios"] = {f"{a}/{b}": ratio(rates[a], rates[b]) for a, b in RATIOS}
    result["served_vs_trl"] = {
        figure: ratio(*([1 / r[name][figure] for r in measured] for name in ("served", "trl")))
        for figure in (*PHASES[1:], CPU)
    }
    result["others_load"] = [_load(figures) for figures in measured]
    return result


def _load(figures: Round) -> float:
    return max(values["others_load"] for values in figures.values())
