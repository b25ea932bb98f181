"""A stop is obeyed within an iteration, at every boundary, and costs that iteration alone."""

import pytest
import torch

from tests.trainer.conftest import BrightnessScorer
from trainer.ddpo.algorithm import DDPO
from trainer.ddpo.config import DDPOConfig
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted
from trainer.rwr.algorithm import RWR
from trainer.rwr.config import RWRConfig
from trainer.spec.prompts.rows import Row
from trainer.spec.sections import RewardSpec

COMMON = {"samples_per_iteration": 8, "sample_batch_size": 4, "sampling_steps": 3}
CONFIGS = {
    "ddpo": DDPOConfig(**COMMON, updates_per_iteration=2, rows_per_forward=4, learning_rate=1e-3),
    "rwr": RWRConfig(**COMMON, epochs=2, batch_size=4, rows_per_forward=2, learning_rate=1e-3),
}


class CountingInterrupt(Interrupt):
    """Is set when it is looked at for the n-th time."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def pending(self):
        self.left -= 1
        if self.left == 0:
            self.set(Cause.PREEMPTED)
        return super().pending()


def start(folder, name, interrupt):
    build = {"ddpo": DDPO, "rwr": RWR}[name]
    rewards, rows = [RewardSpec(name="brightness")], [Row(prompt="a"), Row(prompt="b")]
    scorer = BrightnessScorer()
    return build(
        Diffusion.load(str(folder)), CONFIGS[name], rows, rewards, scorer, 3,
        interrupt=interrupt,
    )  # fmt: skip


def looks(folder, name):
    """How often one iteration looks whether it should stop."""
    interrupt = CountingInterrupt(after=-1)
    start(folder, name, interrupt).step()
    return -1 - interrupt.left


@pytest.mark.parametrize("name", ["ddpo", "rwr"])
def test_a_stop_is_obeyed_before_every_pass_and_every_step(pipeline_folder, name):
    # 8 samples x 3 timesteps in passes of 4, or 2 x 8 samples in passes of 2; and every step.
    assert looks(pipeline_folder, name) == {"ddpo": 6 + 2, "rwr": 8 + 4}[name]


@pytest.mark.parametrize("name", ["ddpo", "rwr"])
def test_what_was_kept_before_the_step_goes_on_exactly(pipeline_folder, name):
    whole = start(pipeline_folder, name, Interrupt())
    whole.step()
    kept = whole.state_dict()
    whole.step()
    before = {key: tensor.clone() for key, tensor in kept["tensors"].items()}
    broken = start(pipeline_folder, name, CountingInterrupt(after=6))  # within the second update
    broken.load_state_dict(kept)
    with pytest.raises(Interrupted):
        broken.step()
    assert all(torch.equal(kept["tensors"][key], before[key]) for key in before)
    resumed = start(pipeline_folder, name, Interrupt())
    resumed.load_state_dict(kept)
    resumed.step()
    found, expected = resumed.state_dict()["tensors"], whole.state_dict()["tensors"]
    assert all(torch.equal(found[key], expected[key]) for key in expected)
