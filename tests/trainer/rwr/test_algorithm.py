"""RWR as a whole on a random-weight pipeline, with brightness as its reward."""

import numpy as np
import pytest
import torch

from salon.errors import RewardFailed
from tests.fixtures.rows import bare
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted
from trainer.rwr.algorithm import RWR
from trainer.rwr.config import RWRConfig
from trainer.rwr.weights import softmax_weights
from trainer.spec.sections import RewardSpec

PROMPTS = ["a", "b", "c"]
BRIGHTNESS = (RewardSpec(name="brightness"),)


def make_rwr(diffusion, scorer, seed=0, rewards=BRIGHTNESS, interrupt=None, **changes):
    values = {
        "samples_per_iteration": 8,
        "sample_batch_size": 4,
        "sampling_steps": 4,
        "epochs": 2,
        "batch_size": 4,
        "rows_per_forward": 3,
        "learning_rate": 1e-3,
        "guidance_scale": 2.0,
    }
    config = RWRConfig(**{**values, **changes})
    return RWR(diffusion, config, bare(PROMPTS), rewards, scorer, seed, interrupt=interrupt)


def submitted(scorer):
    """The prompts and the brightness of all that was sampled."""
    images = np.concatenate([images for images, _ in scorer.submitted])
    prompts = [prompt for _, prompts in scorer.submitted for prompt in prompts]
    return prompts, images.mean(axis=(1, 2, 3)) / 255


def test_metrics_of_an_iteration(diffusion, scorer):
    step = make_rwr(diffusion, scorer, per_prompt=False, inverse_temperature=50.0).step()
    metrics = step.metrics
    _, scores = submitted(scorer)
    weights = softmax_weights(scores, 50.0)
    assert step.samples == metrics["kept_samples"] == 8
    assert metrics["dropped"] == 0
    assert metrics["reward_mean"] == metrics["rewards/brightness/mean"] == scores.mean()
    assert metrics["weight_max"] == weights.max() > 1
    assert metrics["effective_samples"] == pytest.approx(64 / (weights**2).sum())
    assert metrics["updates"] == 4  # two of four samples, twice
    assert metrics["grad_norm"] > 0
    assert metrics["loss"] > 0
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(isinstance(value, float) for value in metrics.values())


def test_sparse_trains_on_the_best_of_each_prompt_alone(diffusion, scorer):
    rwr = make_rwr(diffusion, scorer, weighting="sparse", percentile=0.9, samples_per_iteration=16)
    seen = []
    hook = diffusion.unet.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0])) if torch.is_grad_enabled() else None
    )
    metrics = rwr.step().metrics
    hook.remove()
    prompts, scores = submitted(scorer)
    best = {p: max(s for q, s in zip(prompts, scores, strict=True) if q == p) for p in prompts}
    kept = sum(best[p] == s for p, s in zip(prompts, scores, strict=True))
    assert metrics["kept_samples"] == metrics["effective_samples"] == kept == len(best)
    assert sum(seen) == 2 * 2 * kept  # both halves of guidance, two epochs
    assert metrics["updates"] == 2


def test_equal_shares_come_as_near_to_the_batch_size_as_they_can(diffusion, scorer):
    assert (
        make_rwr(diffusion, scorer, batch_size=3).step().metrics["updates"] == 2 * 3
    )  # of 3, 3, 2
    assert make_rwr(diffusion, scorer, batch_size=6).step().metrics["updates"] == 2 * 1  # of all 8
    assert make_rwr(diffusion, scorer, batch_size=99).step().metrics["updates"] == 2 * 1


def test_training_raises_the_reward(diffusion, scorer):
    rwr = make_rwr(
        diffusion,
        scorer,
        samples_per_iteration=32,
        sample_batch_size=32,
        rows_per_forward=16,
        batch_size=16,
        epochs=6,
        inverse_temperature=200.0,
        learning_rate=2e-3,
    )
    seeds = range(32)
    before = rwr.generate(["a"] * 32, seeds).mean()
    rewards = [rwr.step().metrics["reward_mean"] for _ in range(6)]
    assert rewards[-1] > rewards[0]
    assert rwr.generate(["a"] * 32, seeds).mean() > before


def test_an_interrupt_ends_a_step_midway(diffusion, scorer):
    interrupt = Interrupt()
    rwr = make_rwr(diffusion, scorer, interrupt=interrupt)
    passes = []

    def stop(unet, inputs):
        passes.append(torch.is_grad_enabled())
        if sum(passes) == 3:
            interrupt.set(Cause.PREEMPTED)

    diffusion.unet.register_forward_pre_hook(stop)
    with pytest.raises(Interrupted):
        rwr.step()
    assert sum(passes) == 3  # of 2 epochs × 3 passes of 3, 3 and 2 samples
    assert rwr.state_dict()["state"] == {"iteration": 0}


def test_dropped_samples_are_left_out_of_everything(diffusion, scorer):
    scorer.refuse_first = True
    step = make_rwr(diffusion, scorer).step()
    metrics = step.metrics
    kept = np.concatenate([i[1:].mean(axis=(1, 2, 3)) / 255 for i, _ in scorer.submitted])
    assert (step.samples, metrics["kept_samples"], metrics["dropped"]) == (6, 6, 2)
    assert metrics["reward_mean"] == kept.mean()


def test_an_iteration_without_a_reward_fails_and_changes_nothing(diffusion, scorer):
    scorer.refuse_first = True
    rwr = make_rwr(diffusion, scorer, samples_per_iteration=2, sample_batch_size=1)
    before = rwr.state_dict()
    with pytest.raises(RewardFailed, match=r"none of the 2 samples.*sample 0, reward brightness"):
        rwr.step()
    after = rwr.state_dict()
    assert after["state"] == before["state"]
    assert all(torch.equal(after["tensors"][k], v) for k, v in before["tensors"].items())


def test_the_preview_stays_the_same_until_the_model_changes(diffusion, scorer):
    rwr = make_rwr(diffusion, scorer)
    first, again = rwr.preview(), rwr.preview()
    assert first.prompts == ("a", "b", "c")
    np.testing.assert_array_equal(first.images, again.images)
    rwr.step()
    assert (rwr.preview().images != first.images).any()
