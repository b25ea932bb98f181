"""Putting the parts of a batch together: what is dropped, and what ends the job."""

from concurrent.futures import Future

import pytest

from salon.errors import RewardFailed, SampleError
from salon.reward.v1 import reward_pb2
from salon.wire.outcomes import Outcome
from trainer.rewards.scorer import BatchAssembly


def outcome(score=None, code=None):
    error = None if code is None else SampleError(code, "a: what is wrong")
    return Outcome(score, error, {}, "a", "1")


def assemble(parts, on_reward_error):
    future = Future()
    BatchAssembly(future, ["a"], len(parts), on_reward_error).part("a", 0, len(parts))(parts)
    return future


PARTS = [outcome(score=1.0), outcome(code=reward_pb2.ERROR_CODE_INVALID_IMAGE)]


def test_a_sample_that_cannot_be_judged_is_left_out_or_ends_the_job_as_the_job_says():
    batch = assemble(PARTS, "drop").result(0)
    assert batch.valid.tolist() == [True, False]
    [left_out] = batch.errors
    assert type(left_out) is SampleError
    assert left_out.code == reward_pb2.ERROR_CODE_INVALID_IMAGE
    assert str(left_out) == "sample 1, reward a: a: what is wrong"
    said = "sample 1, reward a: .*`on_reward_error: drop` would leave such samples out"
    with pytest.raises(SampleError, match=said) as caught:
        assemble(PARTS, "fail").result(0)
    assert caught.value.code == reward_pb2.ERROR_CODE_INVALID_IMAGE


@pytest.mark.parametrize("on_reward_error", ["fail", "drop"])
def test_outcomes_that_are_not_one_a_sample_belong_to_none(on_reward_error):
    future = Future()
    BatchAssembly(future, ["a"], 3, on_reward_error).part("a", 0, 3)(PARTS)
    with pytest.raises(RewardFailed, match="reward a gave 2 outcomes for 3 samples"):
        future.result(0)


@pytest.mark.parametrize("on_reward_error", ["fail", "drop"])
def test_what_no_sample_of_the_job_can_ever_bring_ends_it(on_reward_error):
    parts = [*PARTS, outcome(code=reward_pb2.ERROR_CODE_MISSING_INPUT)]
    with pytest.raises(
        SampleError, match=r"^a: what is wrong; a job sends .*or take a out"
    ) as caught:
        assemble(parts, on_reward_error).result(0)
    assert caught.value.code == reward_pb2.ERROR_CODE_MISSING_INPUT
