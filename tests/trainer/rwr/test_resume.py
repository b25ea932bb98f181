"""A run that was interrupted and resumed equals one that was not, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fixtures.rows import bare
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.rwr.algorithm import RWR
from trainer.rwr.config import RWRConfig
from trainer.spec.sections import RewardSpec

WALL_CLOCK = {"sampling_seconds", "update_seconds"}


@pytest.fixture(
    params=[
        {},
        {"weighting": "sparse", "percentile": 0.5, "ema_decay": 0.5},
        {"lora": {"rank": 2, "alpha": 3}, "per_prompt": False},
    ],
    ids=["full", "sparse with averaged weights", "lora"],
)
def config(request):
    settings = {
        "samples_per_iteration": 8,
        "sample_batch_size": 4,
        "sampling_steps": 3,
        "epochs": 2,
        "batch_size": 3,
        "rows_per_forward": 2,
        "learning_rate": 1e-3,
    }
    return RWRConfig(**{**settings, **request.param})


def start(folder, config, scorer, seed=3):
    rewards = [RewardSpec(name=name, normalize="zscore") for name in ("brightness", "redness")]
    return RWR(Diffusion.load(str(folder)), config, bare("ab"), rewards, scorer, seed)


def on_disk(state, folder):
    """As a checkpoint keeps it."""
    save_file(state["tensors"], folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps(state["state"]))
    return {
        "tensors": load_file(folder / "tensors.safetensors"),
        "state": json.loads((folder / "state.json").read_text()),
    }


def assert_equal(state, other):
    assert state["state"] == other["state"]
    assert state["tensors"].keys() == other["tensors"].keys()
    for name, tensor in state["tensors"].items():
        assert torch.equal(tensor, other["tensors"][name]), name


def comparable(step):
    kept = {name: value for name, value in step.metrics.items() if name not in WALL_CLOCK}
    return step.samples, kept


def test_resume_is_exact(pipeline_folder, config, scorer, tmp_path):
    whole = start(pipeline_folder, config, scorer)
    fresh = whole.state_dict()
    whole.step()
    halfway = on_disk(whole.state_dict(), tmp_path)
    expected = comparable(whole.step())

    torch.manual_seed(99)  # the global generator must not matter
    resumed = start(pipeline_folder, config, scorer)
    assert_equal(resumed.state_dict(), fresh)
    resumed.load_state_dict(halfway)
    assert_equal(resumed.state_dict(), halfway)
    assert comparable(resumed.step()) == expected
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert whole.state_dict()["state"] == {"iteration": 2}
    assert any(
        not torch.equal(tensor, halfway["tensors"][name])
        for name, tensor in whole.state_dict()["tensors"].items()
    )


def test_the_seed_decides(pipeline_folder, config, scorer):
    one = start(pipeline_folder, config, scorer, seed=1).step().metrics
    other = start(pipeline_folder, config, scorer, seed=2).step().metrics
    assert one["rewards/brightness/mean"] != other["rewards/brightness/mean"]


def test_every_epoch_of_every_iteration_has_its_own_noise(diffusion, scorer):
    config = RWRConfig(
        samples_per_iteration=2,
        sample_batch_size=2,
        sampling_steps=2,
        epochs=2,
        batch_size=1,
        learning_rate=1e-12,
        guidance_scale=1,
    )
    rwr = RWR(diffusion, config, bare("a"), [RewardSpec(name="brightness")], scorer, 0)
    noised = []

    def note(unet, inputs):
        if torch.is_grad_enabled():
            noised.append(tuple(inputs[0].flatten().tolist()))

    diffusion.unet.register_forward_pre_hook(note)
    rwr.step()
    rwr.step()
    assert len(set(noised)) == len(noised) == 8


def test_a_checkpoint_of_other_parameters_is_refused(pipeline_folder, scorer):
    full = start(pipeline_folder, RWRConfig(), scorer)
    lora = start(pipeline_folder, RWRConfig(lora={}), scorer)
    with pytest.raises(ValueError, match="not of this model"):
        lora.load_state_dict(full.state_dict())
