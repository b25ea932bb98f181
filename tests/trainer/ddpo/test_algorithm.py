"""DDPO as a whole on a random-weight pipeline, with brightness as its reward."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from salon.errors import RewardFailed
from tests.fixtures.rows import bare
from trainer.ddpo.algorithm import DDPO
from trainer.ddpo.config import DDPOConfig
from trainer.rewards.scorer import ScoredBatch
from trainer.rewards.weighting import weighted_sum
from trainer.spec.sections import RewardSpec

PROMPTS = ["a", "b", "c"]
BRIGHTNESS = (RewardSpec(name="brightness"),)


def make_config(**changes):
    values = {
        "samples_per_iteration": 8,
        "sample_batch_size": 4,
        "updates_per_iteration": 2,
        "sampling_steps": 4,
        "rows_per_forward": 16,
        "learning_rate": 1e-3,
        "guidance_scale": 2.0,
    }
    return DDPOConfig(**{**values, **changes})


def make_ddpo(diffusion, scorer, seed=0, rewards=BRIGHTNESS, **changes):
    return DDPO(diffusion, make_config(**changes), bare(PROMPTS), rewards, scorer, seed, debug=True)


def two_rewards(normalize):
    brightness = RewardSpec(name="brightness", normalize=normalize)
    return brightness, RewardSpec(name="redness", weight=-0.5, normalize=normalize)


def submitted(scorer):
    """The prompts and the two rewards of all that was sampled."""
    images = np.concatenate([images for images, _ in scorer.submitted])
    prompts = [prompt for _, prompts in scorer.submitted for prompt in prompts]
    brightness = images.mean(axis=(1, 2, 3)) / 255
    return prompts, {"brightness": brightness, "redness": images[..., 0].mean(axis=(1, 2)) / 255}


def test_metrics_of_an_iteration(diffusion, scorer):
    step = make_ddpo(diffusion, scorer).step()
    metrics = step.metrics
    scores = np.concatenate([i.mean(axis=(1, 2, 3)) / 255 for i, _ in scorer.submitted])
    assert [len(images) for images, _ in scorer.submitted] == [4, 4]
    assert step.samples == 8
    assert metrics["dropped"] == 0
    assert metrics["reward_mean"] == metrics["rewards/brightness/mean"] == scores.mean()
    assert metrics["reward_std"] == metrics["rewards/brightness/std"] == scores.std(ddof=1)
    assert metrics["ratio_deviation_first"] < 1e-5
    assert metrics["grad_norm"] > 0
    assert metrics["advantage_std"] == pytest.approx((8 / 7) ** 0.5, abs=1e-3)  # of all: 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(isinstance(value, float) for value in metrics.values())


def test_z_scores_of_two_rewards_go_through_the_statistics_of_their_prompts(diffusion, scorer):
    rewards = two_rewards("zscore")
    ddpo = make_ddpo(diffusion, scorer, rewards=rewards)
    metrics = ddpo.step().metrics
    prompts, scores = submitted(scorer)
    total = weighted_sum(rewards, scores, prompts)
    buffers = ddpo.state_dict()["state"]["rewards"]
    assert buffers == {
        p: [t for q, t in zip(prompts, total, strict=True) if q == p] for p in buffers
    }
    assert (metrics["reward_mean"], metrics["reward_std"]) == (total.mean(), total.std(ddof=1))
    for name, values in scores.items():
        assert metrics[f"rewards/{name}/mean"] == values.mean()
        assert metrics[f"rewards/{name}/std"] == values.std(ddof=1)


def test_group_normalised_rewards_are_the_advantages_without_a_memory(diffusion, scorer):
    rewards = two_rewards("group")
    ddpo = make_ddpo(diffusion, scorer, rewards=rewards)
    metrics = ddpo.step().metrics
    prompts, scores = submitted(scorer)
    total = weighted_sum(rewards, scores, prompts)
    assert metrics["reward_std"] == total.std(ddof=1)
    assert metrics["advantage_mean"] == pytest.approx(0, abs=1e-9)
    assert metrics["advantage_std"] == pytest.approx(1, rel=1e-3)
    assert ddpo.state_dict()["state"]["rewards"] == {}


def test_dropped_samples_do_not_enter_the_normalisation(diffusion, scorer):
    scorer.refuse_first = True
    rewards = two_rewards("group")
    metrics = make_ddpo(diffusion, scorer, rewards=rewards).step().metrics
    prompts, scores = submitted(scorer)
    kept = [i for i in range(8) if i % 4]
    total = weighted_sum(
        rewards, {n: s[kept] for n, s in scores.items()}, [prompts[i] for i in kept]
    )
    assert metrics["reward_std"] == total.std(ddof=1)
    assert metrics["rewards/redness/mean"] == scores["redness"][kept].mean()


def test_training_raises_the_reward(diffusion, scorer):
    ddpo = make_ddpo(diffusion, scorer, samples_per_iteration=32, sample_batch_size=32)
    seeds = range(32)
    before = ddpo.generate(["a"] * 32, seeds).mean()
    rewards = [ddpo.step().metrics["reward_mean"] for _ in range(12)]
    assert rewards[-1] > rewards[0]
    assert ddpo.generate(["a"] * 32, seeds).mean() > before


def test_a_batch_is_submitted_before_the_next_is_sampled(diffusion):
    events = []

    class Recorder:
        def submit(self, images, prompts, metadata=None, references=None):
            events.append("submit")
            future = Future()
            scores = images.mean(axis=(1, 2, 3)) / 255
            valid = np.ones(len(images), dtype=bool)
            future.set_result(ScoredBatch({"brightness": scores}, valid, ()))
            return future

    hook = diffusion.unet.register_forward_hook(lambda *_: events.append("unet"))
    make_ddpo(diffusion, Recorder()).step()
    hook.remove()
    assert events[:10] == ["unet"] * 4 + ["submit"] + ["unet"] * 4 + ["submit"]


def test_dropped_samples_are_left_out_of_everything(diffusion, scorer):
    scorer.refuse_first = True
    ddpo = make_ddpo(diffusion, scorer)
    step = ddpo.step()
    metrics = step.metrics
    kept = np.concatenate([i[1:].mean(axis=(1, 2, 3)) / 255 for i, _ in scorer.submitted])
    assert step.samples == 6
    assert metrics["dropped"] == 2
    assert metrics["reward_mean"] == kept.mean()
    buffers = ddpo.state_dict()["state"]["rewards"]
    assert sorted(reward for rewards in buffers.values() for reward in rewards) == sorted(kept)


def test_an_iteration_without_a_reward_fails_and_changes_nothing(diffusion, scorer):
    scorer.refuse_first = True
    ddpo = make_ddpo(diffusion, scorer, samples_per_iteration=2, sample_batch_size=1)
    before = ddpo.state_dict()
    with pytest.raises(RewardFailed, match=r"none of the 2 samples.*sample 0, reward brightness"):
        ddpo.step()
    after = ddpo.state_dict()
    assert after["state"] == before["state"]
    assert all(torch.equal(after["tensors"][k], v) for k, v in before["tensors"].items())


def test_fewer_samples_than_updates_make_fewer_updates(diffusion, scorer):
    scorer.refuse_first = True
    ddpo = make_ddpo(diffusion, scorer, samples_per_iteration=4, updates_per_iteration=4)
    ddpo.step()
    steps = {
        int(value)
        for name, value in ddpo.state_dict()["tensors"].items()
        if name.startswith("optimizer.step.")
    }
    assert steps == {3}


def test_a_ratio_off_one_before_the_first_update_is_an_error_in_debug(diffusion, scorer):
    ddpo = make_ddpo(diffusion, scorer)
    submit = scorer.submit

    def disturb(images, prompts, metadata=None, references=None):
        with torch.no_grad():
            diffusion.unet.conv_out.weight += 0.05
        return submit(images, prompts, metadata)

    scorer.submit = disturb
    with pytest.raises(RuntimeError, match="before the first update"):
        ddpo.step()


def test_a_generated_image_depends_on_its_prompt_and_seed_alone(diffusion, scorer):
    ddpo = make_ddpo(diffusion, scorer)
    together = ddpo.generate(["a", "b", "a", "c", "b"], [7, 7, 8, 9, 10])
    assert together.shape == (5, 16, 16, 3)
    assert together.dtype == np.uint8
    alone = np.concatenate([ddpo.generate([p], [s]) for p, s in (("a", 8), ("b", 10))])
    # Rounding depends on the batch, and may carry a pixel to its neighbouring value.
    assert np.abs(together[[2, 4]].astype(int) - alone).max() <= 1
    assert np.abs(together[0].astype(int) - together[2]).max() > 1


def test_the_preview_stays_the_same_until_the_model_changes(diffusion, scorer):
    ddpo = make_ddpo(diffusion, scorer)
    first, again = ddpo.preview(), ddpo.preview()
    assert first.prompts == ("a", "b", "c")
    assert first.seeds == (0, 1, 2)
    np.testing.assert_array_equal(first.images, again.images)
    ddpo.step()
    assert (ddpo.preview().images != first.images).any()
