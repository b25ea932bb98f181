"""With `staleness: 1` the next iteration is sampled while the rewards of this one arrive."""

from concurrent.futures import Future

import pytest
import torch

from tests.trainer.ddpo.test_algorithm import make_ddpo
from trainer.runtime.interrupt import Cause, Interrupted

BATCHES = 2  # an iteration


def test_sampling_goes_on_while_no_reward_has_come(diffusion, scorer):
    """The jury answers nothing before the next iteration's last batch: waiting would never end."""
    answer, waiting = scorer.submit, []

    def submit(images, prompts, metadata=None, references=None):
        future = Future()
        waiting.append((future, answer(images, prompts)))
        if len(waiting) == 2 * BATCHES:
            for promised, given in waiting:
                promised.set_result(given.result())
        return future

    scorer.submit = submit
    assert make_ddpo(diffusion, scorer, staleness=1).step().samples == 8


def test_the_next_iteration_is_that_of_the_parameters_before_the_update(diffusion, scorer):
    stale = make_ddpo(diffusion, scorer, staleness=1, learning_rate=1e-2)
    first, second = stale.step(), stale.step()
    # Two iterations were sampled by the first parameters, so the second starts off ratio 1; in
    # debug, as here, that is no error.
    assert first.metrics["ratio_deviation_first"] < 1e-5
    assert second.metrics["ratio_deviation_first"] > 1e-4
    assert stale.state_dict()["state"]["in_flight"] == [2, 1]


def test_the_samples_are_those_the_first_parameters_draw(pipeline_folder, scorer, diffusion):
    make_ddpo(diffusion, scorer, staleness=1, learning_rate=1e-2).step()
    ahead = [images.tobytes() for images, _ in scorer.submitted[BATCHES:]]
    scorer.submitted.clear()
    still = make_ddpo(type(diffusion).load(str(pipeline_folder)), scorer, learning_rate=1e-20)
    still.step()
    still.step()
    assert [images.tobytes() for images, _ in scorer.submitted[BATCHES:]] == ahead


def test_an_interrupt_keeps_what_was_in_flight(diffusion, scorer):
    ddpo = make_ddpo(diffusion, scorer, staleness=1)
    ddpo.step()
    before = ddpo.state_dict()

    def stop(images, prompts, metadata=None, references=None):
        raise Interrupted(Cause.PREEMPTED)

    scorer.submit = stop
    with pytest.raises(Interrupted):
        ddpo.step()
    after = ddpo.state_dict()
    assert after["state"] == before["state"]
    assert after["tensors"].keys() == before["tensors"].keys()
    assert all(torch.equal(after["tensors"][k], v) for k, v in before["tensors"].items())
