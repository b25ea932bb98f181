"""The DDPO benchmark: its models by their size, its trainers as processes, its arithmetic."""

import dataclasses
import io
import sys

import pytest
import torch
from rich.console import Console

from benchmarks.ddpo.equality import (
    TOLERANCE,
    compare_gradients,
    relative_difference,
)
from benchmarks.ddpo.models import build_unet, write_model
from benchmarks.ddpo.operations import count_operations, matmul_rate
from benchmarks.ddpo.processes import contender
from benchmarks.ddpo.rounds import measure_rounds, summary
from benchmarks.ddpo.tables import show
from benchmarks.ddpo.workload import TRL_PYTHON, WORKLOADS, Assignment
from salon.errors import SalonError

SALON = [sys.executable, "-m", "benchmarks.ddpo.salon_contender"]
TRL = [str(TRL_PYTHON), "-m", "benchmarks.ddpo.trl_contender"]
WORK = dataclasses.replace(WORKLOADS["tiny"], samples=4, sample_batch=2, update_samples=2, steps=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, "tiny", "cpu")
    return str(folder)


def assignment(model, mode, rows):
    return Assignment(model, WORK, mode, "cpu", "fp32", 1, 0, {"rows_per_forward": rows}, None)


def test_the_unets_have_the_sizes_they_are_named_for():
    with torch.device("meta"):
        sizes = {
            size: sum(parameter.numel() for parameter in build_unet(size).parameters())
            for size in WORKLOADS
        }
    # The UNet of Stable Diffusion 1.x: 860 million by its model card, exactly this by its weights.
    assert sizes["sd15"] == 859_520_964
    assert 1.0e6 < sizes["tiny"] < 1.1e6


def test_a_contender_iterates_is_counted_and_agrees_with_one_that_groups_its_rows_otherwise(
    model, tmp_path
):
    with (
        contender(SALON, assignment(model, "lora", 1), tmp_path / "one.log") as one,
        contender(SALON, assignment(model, "lora", 4), tmp_path / "all.log") as other,
    ):
        equality = compare_gradients(one, other, tmp_path)
        measured = measure_rounds({"in_process": one, "served": other, "trl": other}, 1)
        used = one.ask("operations")
    # The same code twice: what is in float64 alone differs by its own rounding, some 2⁻⁵³ blown up
    # a thousand times; one operation in float32 would show as 2⁻²⁴ = 6e-8.
    assert 0 < equality["gradient"] < 1e-12 < equality["gradient_float32"]
    # Two factors of each of four projections, in two attentions of each of seven transformers.
    assert equality["parameters"] == 2 * 4 * 2 * 7
    assert used["operations"] > 1e8
    figures = summary(measured, WORK.samples)
    in_process = figures["in_process"]
    assert in_process["samples_per_second"]["median"] == pytest.approx(
        WORK.samples / measured[0]["in_process"]["seconds"]
    )
    assert (
        in_process["sampling"]["median"] + in_process["update"]["median"]
        < (in_process["seconds"]["median"])
    )
    assert figures["ratios"]["served/in_process"]["of_medians"] == pytest.approx(
        measured[0]["in_process"]["seconds"] / measured[0]["served"]["seconds"]
    )
    console = Console(file=io.StringIO(), width=120)
    mode = {**figures, "equality": equality, "utilisation": {**used, "matmul_share": 0.5}}
    labels = {"size": "tiny", "precision": "fp32", "device": "cpu", "rounds": 1}
    show({**labels, "workload": vars(WORK), "modes": {"lora": mode}}, console)
    assert "Salon, served / TRL 0.23.1" in console.file.getvalue()


@pytest.mark.skipif(not TRL_PYTHON.exists(), reason="`make .venv-trl/installed` builds it")
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_trl_computes_the_same_gradients(model, tmp_path, mode):
    with (
        contender(SALON, assignment(model, mode, 3), tmp_path / "salon.log") as salon,
        contender(TRL, assignment(model, mode, 0), tmp_path / "trl.log") as trl,
    ):
        equality = compare_gradients(salon, trl, tmp_path)
    # In float32, as they train, each is off its own float64 by 1e-5 to 1e-4: that says how a
    # machine rounds, and nothing of whether both compute the same.
    assert equality["gradient"] < TOLERANCE
    assert equality["loss"] < TOLERANCE


def test_a_contender_that_dies_is_named_with_its_last_words(model, tmp_path):
    with (
        contender(SALON, assignment(model, "full", 1), tmp_path / "salon.log") as salon,
        pytest.raises(SalonError, match=r"(?s)salon died: .*FileNotFoundError.*no/case"),
    ):
        salon.ask("gradients", case="no/case", out="no/out", dtype="float32")
    with (
        pytest.raises(SalonError, match=r"there is no none: .*make \.venv-trl"),
        contender(["none"], assignment(model, "full", 1), tmp_path / "none.log"),
    ):
        pass


def test_relative_difference_is_of_all_tensors_together():
    ours = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}
    peers = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([11.0])}
    assert relative_difference(ours, peers) == pytest.approx(1 / (25 + 121) ** 0.5)
    with pytest.raises(ValueError, match=r"2 gradients are of one trainer alone, e\.g\. b"):
        relative_difference({"a": ours["a"], "c": ours["b"]}, peers)


def test_operations_are_two_for_each_term_of_a_product():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert count_operations(lambda: left @ right) == 2 * 3 * 5 * 7
    assert matmul_rate("cpu", "fp32") > 1e8
