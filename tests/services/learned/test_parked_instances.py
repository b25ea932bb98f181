"""Instances of every kind as they are when a service stops."""

from contextlib import closing

import pytest
import torch

from salon.serving import Compared, Labelled
from services.learned.instance import TrainedInstance
from services.learned.parking import ParkingPlace
from services.learned.store import InstanceStore
from services.learned.trained_reward import LearnedConfig
from services.rewards.discriminator import Critic, Discriminator, DiscriminatorHyperparameters
from services.rewards.preference import Preference
from tests.services.learned.learning import SMALL, fit, images, sample


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [Discriminator, Preference])
def test_rewards_and_channels_of_every_kind_are_exported_and_parked(kind, channels, tmp_path):
    first, second = images(2, 0, 256, channels=channels)
    examples = {
        Discriminator: [Labelled(sample(first), real=True), Labelled(sample(second), real=False)],
        Preference: [Compared(sample(first), sample(second), 1.0)],
    }
    config = LearnedConfig(state_dir=tmp_path)
    with closing(kind(config)) as reward:
        fit(reward, "a", examples[kind], **SMALL | {"channels": channels})
        exported = reward.export("a")
    with closing(kind(config)) as reward:
        assert reward.export("a") == exported
        # What was parked was in memory all along: the same batches in the same layout.
        reward.import_("b", exported.data)
        metrics = [fit(reward, name, [], request_id="next").metrics for name in "ab"]
        assert metrics[0] == metrics[1]


class Unwritable(TrainedInstance):
    """An instance that fails in a way that nobody has foreseen."""

    def dump(self):
        raise ValueError("told to")


def test_one_that_cannot_be_written_does_not_keep_the_others_from_being_parked(tmp_path):
    def dead():
        raise AssertionError("nothing is revived here")

    store = InstanceStore(ParkingPlace(tmp_path), dead, 3, 3, 0.1)
    for name, kind in (("a", TrainedInstance), ("b", Unwritable), ("c", TrainedInstance)):
        with store.claimed(name), store.place(name):
            learner = Critic(DiscriminatorHyperparameters(**SMALL), torch.device("cpu"))
            store.put(name, kind("discriminator", "1", name, learner))
    store.close()
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {"a", "c"}
