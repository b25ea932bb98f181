"""A run that was interrupted and resumed equals one that was not, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fixtures.rows import bare
from trainer.ddpo.algorithm import DDPO
from trainer.ddpo.config import DDPOConfig
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.spec.prompts.rows import Row
from trainer.spec.sections import RewardSpec

WALL_CLOCK = {"sampling_seconds", "update_seconds"}


@pytest.fixture(params=[None, {"rank": 2, "alpha": 3}], ids=["full", "lora"])
def config(request):
    return DDPOConfig(
        samples_per_iteration=8,
        sample_batch_size=4,
        updates_per_iteration=2,
        inner_epochs=2,
        sampling_steps=3,
        rows_per_forward=5,
        per_prompt_buffer=6,
        per_prompt_min_count=2,
        learning_rate=1e-3,
        lora=request.param,
    )


def start(folder, config, scorer, seed=3, normalize="none", rows=None):
    rewards = [RewardSpec(name=name, normalize=normalize) for name in ("brightness", "redness")]
    return DDPO(Diffusion.load(str(folder)), config, rows or bare("ab"), rewards, scorer, seed)


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


@pytest.mark.parametrize("normalize", ["none", "zscore", "group"])
def test_resume_is_exact(pipeline_folder, config, scorer, tmp_path, normalize):
    whole = start(pipeline_folder, config, scorer, normalize=normalize)
    fresh = whole.state_dict()
    whole.step()
    halfway = on_disk(whole.state_dict(), tmp_path)
    expected = comparable(whole.step())

    torch.manual_seed(99)  # the global generator must not matter
    resumed = start(pipeline_folder, config, scorer, normalize=normalize)
    assert_equal(resumed.state_dict(), fresh)
    resumed.load_state_dict(halfway)
    assert_equal(resumed.state_dict(), halfway)
    assert comparable(resumed.step()) == expected
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert whole.state_dict()["state"]["iteration"] == 2
    assert any(
        not torch.equal(tensor, halfway["tensors"][name])
        for name, tensor in whole.state_dict()["tensors"].items()
    )


def test_resume_with_a_rollout_in_flight_is_exact(pipeline_folder, scorer, tmp_path):
    """It was sampled by parameters that are gone, and is sent to be scored once more."""
    config = DDPOConfig(
        samples_per_iteration=4,
        sample_batch_size=2,
        updates_per_iteration=2,
        sampling_steps=3,
        rows_per_forward=5,
        learning_rate=1e-3,
        clip_range=0.1,
        staleness=1,
    )
    whole = start(pipeline_folder, config, scorer)
    whole.step()
    halfway = on_disk(whole.state_dict(), tmp_path)
    assert halfway["state"]["in_flight"] == [1, 0]
    sent = [images.tobytes() for images, _ in scorer.submitted]
    expected = comparable(whole.step())

    resumed = start(pipeline_folder, config, scorer)
    scorer.submitted.clear()
    resumed.load_state_dict(halfway)
    assert [images.tobytes() for images, _ in scorer.submitted] == sent[2:]
    assert_equal(resumed.state_dict(), halfway)
    assert comparable(resumed.step()) == expected
    assert_equal(resumed.state_dict(), whole.state_dict())


def test_rows_of_one_prompt_have_statistics_of_their_own_which_a_checkpoint_keeps(
    pipeline_folder, config, scorer, tmp_path
):
    rows = [Row(prompt="a"), Row(prompt="a", metadata={"of": 1}), Row(prompt="a", reference="/x")]
    whole = start(pipeline_folder, config, scorer, rows=rows)
    whole.step()
    halfway = on_disk(whole.state_dict(), tmp_path)
    expected = comparable(whole.step())
    keys = ["a", '{"metadata":{"of":1},"prompt":"a"}', '{"prompt":"a","reference":"/x"}']
    assert sorted(whole.state_dict()["state"]["rewards"]) == keys
    resumed = start(pipeline_folder, config, scorer, rows=rows)
    resumed.load_state_dict(halfway)
    assert comparable(resumed.step()) == expected
    assert_equal(resumed.state_dict(), whole.state_dict())


def test_statistics_of_a_checkpoint_of_before_there_were_rows_go_on(
    pipeline_folder, config, scorer
):
    ddpo = start(pipeline_folder, config, scorer)
    kept = {"a": [1.25], "b": [0.75]}
    ddpo.load_state_dict({**ddpo.state_dict(), "state": {"iteration": 0, "rewards": kept}})
    ddpo.step()
    for images, prompts in scorer.submitted:
        sums = images.mean(axis=(1, 2, 3)) / 255 + images[..., 0].mean(axis=(1, 2)) / 255
        for prompt, total in zip(prompts, sums, strict=True):
            kept[prompt] = [*kept[prompt], total][-config.per_prompt_buffer :]
    assert {len(rewards) for rewards in kept.values()} != {1}
    assert ddpo.state_dict()["state"]["rewards"] == kept


def test_every_batch_of_every_iteration_has_its_own_noise(pipeline_folder, scorer):
    config = DDPOConfig(
        samples_per_iteration=2,
        sample_batch_size=1,
        updates_per_iteration=1,
        sampling_steps=2,
        learning_rate=1e-12,
    )
    reward = RewardSpec(name="brightness")
    ddpo = DDPO(Diffusion.load(str(pipeline_folder)), config, bare("a"), [reward], scorer, 0)
    ddpo.step()
    ddpo.step()
    assert len({images.tobytes() for images, _ in scorer.submitted}) == 4


def test_the_seed_decides(pipeline_folder, config, scorer):
    one = start(pipeline_folder, config, scorer, seed=1).step().metrics
    other = start(pipeline_folder, config, scorer, seed=2).step().metrics
    assert one["reward_mean"] != other["reward_mean"]


def test_a_snapshot_does_not_change_with_the_run(pipeline_folder, config, scorer):
    ddpo = start(pipeline_folder, config, scorer)
    ddpo.step()
    snapshot = ddpo.state_dict()
    copies = {name: tensor.clone() for name, tensor in snapshot["tensors"].items()}
    ddpo.step()
    assert all(torch.equal(snapshot["tensors"][name], copies[name]) for name in copies)


def test_a_checkpoint_of_other_parameters_is_refused(pipeline_folder, scorer):
    full = start(pipeline_folder, DDPOConfig(), scorer)
    lora = start(pipeline_folder, DDPOConfig(lora={}), scorer)
    with pytest.raises(ValueError, match="not of this model"):
        lora.load_state_dict(full.state_dict())
