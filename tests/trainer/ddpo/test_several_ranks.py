"""Two processes make the update that one makes; run as a module this is one of the two."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from salon.errors import SalonError, UnknownInstance
from tests.fixtures.ranks import run_ranks
from tests.fixtures.rows import bare
from tests.trainer.conftest import BrightnessScorer
from trainer.algorithm import Step
from trainer.ddpo.algorithm import DDPO
from trainer.ddpo.config import DDPOConfig
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.runtime.ranks import Ranks
from trainer.spec.sections import RewardSpec

COMMON = {
    "sample_batch_size": 4,
    "samples_per_iteration": 12,  # three batches: one rank has two of them, the other one
    "sampling_steps": 3,
    "rows_per_forward": 5,
    "guidance_scale": 2.0,
    "per_prompt_buffer": 6,
    "per_prompt_min_count": 2,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-4,  # at 1e-8 AdamW makes a full step of gradients that are rounding alone
    "clip_range": 0.1,
}
CASES = {
    "importance": {"updates_per_iteration": 2, "inner_epochs": 2},
    "score_function": {"estimator": "score_function", "advantages": "group"},
    "stale": {
        "updates_per_iteration": 2,
        "staleness": 1,
        "lora": {"rank": 2, "alpha": 3},
        "timestep_fraction": 0.6,
        "kl_weight": 0.5,
        "advantages": "global",
    },
}
# Sums of the same numbers in another order: in fp32, an update that differs by so much of its norm.
TOLERANCE = 1e-4


def start(pipeline, case, ranks=None):
    scorer = BrightnessScorer()
    scorer.refuse_first = True
    config = DDPOConfig(**COMMON, **CASES[case])
    diffusion = Diffusion.load(str(pipeline))
    rewards = [RewardSpec(name="brightness"), RewardSpec(name="redness", weight=-0.5)]
    ddpo = DDPO(diffusion, config, bare("ab"), rewards, scorer, seed=3, ranks=ranks, debug=True)
    return ddpo, scorer


def write(folder, name, ddpo, step):
    metrics = {"samples": step.samples, **step.metrics}
    state = ddpo.state_dict()
    save_file(state["tensors"], folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps([state["state"], metrics]))


def read(folder, name):
    state, metrics = json.loads((folder / f"{name}.json").read_text())
    return {"tensors": load_file(folder / f"{name}.safetensors"), "state": state}, metrics


def main(folder, pipeline):
    ranks = Ranks.launched("cpu", timeout_seconds=200)
    for case in CASES:
        ddpo, scorer = start(pipeline, case, ranks)
        for iteration in (1, 2):
            write(folder, f"{case}-{iteration}-{ranks.rank}", ddpo, ddpo.step())
        images = np.stack([images for images, _ in scorer.submitted])
        np.save(folder / f"{case}-images-{ranks.rank}.npy", images)
        ddpo, _ = start(pipeline, case, ranks)
        ddpo.load_state_dict(read(folder, f"{case}-1-alone")[0])
        write(folder, f"{case}-resumed-{ranks.rank}", ddpo, ddpo.step())
    ddpo, scorer = start(pipeline, "importance", ranks)
    if ranks.rank == 1:
        scorer.submit = fail
    try:
        ddpo.step()
    except SalonError as error:
        (folder / f"failure-{ranks.rank}").write_text(f"{type(error).__name__}: {error}")
    ranks.close()


def fail(images, prompts, metadata=None, references=None):
    raise UnknownInstance("the jury has left")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pipeline_folder):
    """What one process and then two wrote; the samples of each case in the order of batches."""
    path = tmp_path_factory.mktemp("several")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have
    for case in CASES:
        ddpo, scorer = start(pipeline_folder, case)
        write(path, f"{case}-0-alone", ddpo, Step(0))
        for iteration in (1, 2):
            write(path, f"{case}-{iteration}-alone", ddpo, ddpo.step())
        np.save(path / f"{case}-images-alone.npy", np.stack([i for i, _ in scorer.submitted]))
    run_ranks("tests.trainer.ddpo.test_several_ranks", 2, path, str(pipeline_folder))
    for case in CASES:
        ddpo, _ = start(pipeline_folder, case)
        ddpo.load_state_dict(read(path, f"{case}-1-0")[0])
        write(path, f"{case}-resumed-alone", ddpo, ddpo.step())
    torch.set_num_threads(threads)
    return path


def model(state):
    parts = [v.flatten() for n, v in sorted(state["tensors"].items()) if n.startswith("model.")]
    return torch.cat(parts).double()


def assert_same_update(folder, case, name, other):
    """From the state after the first iteration, or for the first one from the start."""
    iteration = "0" if "-1-" in other else "1"
    before = model(read(folder, f"{case}-{iteration}-alone")[0])
    (state, metrics), (expected, expected_metrics) = read(folder, name), read(folder, other)
    update = model(expected) - before
    assert update.norm() > 0
    assert (model(state) - model(expected)).norm() / update.norm() < TOLERANCE
    assert state["state"].keys() == expected["state"].keys()
    assert state["state"]["iteration"] == expected["state"]["iteration"]
    for metric, value in expected_metrics.items():
        if not metric.endswith("_seconds") and metric != "ratio_deviation_first":
            assert metrics[metric] == pytest.approx(value, rel=1e-3, abs=1e-6), metric


@pytest.mark.parametrize("case", CASES)
def test_the_samples_are_the_same(folder, case):
    alone = np.load(folder / f"{case}-images-alone.npy")
    first, second = (np.load(folder / f"{case}-images-{rank}.npy") for rank in (0, 1))
    np.testing.assert_array_equal(first[:2], alone[:3:2])
    np.testing.assert_array_equal(second[:1], alone[1:3:2])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("iteration", [1, 2])
def test_two_processes_make_the_update_of_one(folder, case, iteration):
    assert_same_update(folder, case, f"{case}-{iteration}-0", f"{case}-{iteration}-alone")


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_have_the_same_state(folder, case):
    first, second = (read(folder, f"{case}-2-{rank}")[0] for rank in (0, 1))
    assert first["state"] == second["state"]
    assert first["tensors"].keys() == second["tensors"].keys()
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), name


@pytest.mark.parametrize("case", CASES)
def test_resume_on_another_number_of_processes(folder, case):
    assert_same_update(folder, case, f"{case}-resumed-0", f"{case}-2-alone")
    assert_same_update(folder, case, f"{case}-resumed-alone", f"{case}-2-0")


def test_a_rank_whose_rewards_fail_does_not_leave_the_other_waiting(folder):
    said = [(folder / f"failure-{rank}").read_text() for rank in (0, 1)]
    assert said == [
        "UnknownInstance: rank 1 of 2 failed: the jury has left",
        "UnknownInstance: the jury has left",
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
