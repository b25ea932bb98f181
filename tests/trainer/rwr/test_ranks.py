"""Two processes make the update that one makes; run as a module it is one of them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fixtures.ranks import run_ranks
from tests.fixtures.rows import bare
from tests.trainer.conftest import BrightnessScorer
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.runtime.ranks import Ranks
from trainer.rwr.algorithm import RWR
from trainer.rwr.config import RWRConfig
from trainer.spec.sections import RewardSpec

WALL_CLOCK = {"sampling_seconds", "update_seconds"}

CASES = {
    "softmax": {},
    # Of one sample a prompt at most a few are kept, so that a rank may have none of an update's.
    "sparse": {"weighting": "sparse", "batch_size": 1},
}


def trained(pipeline, case, ranks):
    """The metrics of two iterations, and the parameters after them."""
    settings = {
        "samples_per_iteration": 12,
        "sample_batch_size": 4,  # three batches for two ranks
        "sampling_steps": 3,
        "epochs": 2,
        "batch_size": 5,
        "rows_per_forward": 2,
        "learning_rate": 1e-3,
        # Adam divides each gradient by its own size; at 1e-8 it would show the rounding of sums.
        "adam_epsilon": 1e-3,
    }
    config = RWRConfig(**{**settings, **CASES[case]})
    reward = RewardSpec(name="brightness", normalize="zscore")
    scorer = BrightnessScorer()
    scorer.refuse_first = True  # ranks must agree on what is dropped
    rwr = RWR(Diffusion.load(pipeline), config, bare("ab"), [reward], scorer, 3, ranks=ranks)
    steps = [rwr.step(), rwr.step()]
    metrics = [{"samples": step.samples, **step.metrics} for step in steps]
    return [{n: v for n, v in m.items() if n not in WALL_CLOCK} for m in metrics], rwr.state_dict()[
        "tensors"
    ]


def main(folder, pipeline):
    ranks = Ranks.launched("cpu", timeout_seconds=60)
    for case in CASES:
        metrics, tensors = trained(pipeline, case, ranks)
        save_file(tensors, folder / f"{case}.{ranks.rank}.safetensors")
        (folder / f"{case}.{ranks.rank}.json").write_text(json.dumps(metrics))
    ranks.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pipeline_folder):
    """What two processes wrote."""
    path = tmp_path_factory.mktemp("ranks")
    run_ranks("tests.trainer.rwr.test_ranks", 2, path, str(pipeline_folder))
    return path


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_does(folder, pipeline_folder, case):
    first, second = (load_file(folder / f"{case}.{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected_metrics, expected = trained(str(pipeline_folder), case, Ranks.alone())
    for rank in range(2):
        metrics = json.loads((folder / f"{case}.{rank}.json").read_text())
        for ours, theirs in zip(metrics, expected_metrics, strict=True):
            # Rewards are of uint8 images: rounding may turn a difference of 1e-7 into a level.
            assert ours == pytest.approx(theirs, rel=1e-3)
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
