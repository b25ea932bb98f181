"""What is foreseen of an instance's memory, held against PyTorch's own account of it."""

from contextlib import closing

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from salon.errors import InvalidRequest, UnknownInstance
from salon.serving import Compared, Labelled
from services.learned.footprint import footprint
from services.rewards.discriminator import Critic, DiscriminatorHyperparameters
from services.rewards.preference import PreferenceHyperparameters, PreferenceModel
from tests.services.learned.learning import SMALL, discriminator, fit, images, light_is_real, sample


def most_allocated(work):
    """Bytes that PyTorch holds at once on the CPU during `work`, beyond those it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.parametrize(
    ("model", "hyperparameters", "changes"),
    [
        (Critic, DiscriminatorHyperparameters, {"image_size": 64, "batch_size": 16}),
        (Critic, DiscriminatorHyperparameters, {"image_size": 16, "base_width": 128}),
        (Critic, DiscriminatorHyperparameters, {"variant": "spectral_norm", "base_width": 128}),
        (PreferenceModel, PreferenceHyperparameters, {"image_size": 64, "batch_size": 16}),
    ],
)
def test_a_step_takes_no_more_than_foreseen_and_not_much_less(model, hyperparameters, changes):
    own = hyperparameters(**SMALL | {"replay_capacity": 2} | changes)
    learner = model(own, torch.device("cpu"))
    first, second = (sample(image) for image in images(2, 0, 256, side=own.image_size))
    examples = {
        Critic: [Labelled(first, real=True), Labelled(second, real=False)],
        PreferenceModel: [Compared(first, second, 1.0)],
    }
    learner.fit(examples[model], 0)
    taken = most_allocated(lambda: learner.fit([], 2))
    assert taken <= footprint(model, own).step <= 4 * taken


def test_a_step_that_is_foreseen_to_take_too_much_is_never_begun(tmp_path):
    with closing(discriminator(tmp_path)) as reward:
        huge = {"image_size": 256, "base_width": 64, "batch_size": 1024, "replay_capacity": 1}
        with pytest.raises(InvalidRequest, match=r"a step .* 4294967296 are .*: lower batch_size"):
            fit(reward, "job", light_is_real(4), **huge)
        with pytest.raises(UnknownInstance):
            reward.export("job")


def test_scores_are_computed_in_parts_no_larger_than_a_batch():
    learner = Critic(DiscriminatorHyperparameters(**SMALL), torch.device("cpu"))
    sizes = []
    learner.network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    given = [sample(image) for image in images(40, 0, 256)]
    together = learner.score(given)
    assert sizes == [16, 16, 8]
    assert together == pytest.approx([learner.score([one])[0] for one in given], rel=1e-4)
