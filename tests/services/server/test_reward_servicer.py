"""Describing rewards, scores from the cache, reference images, at a real service."""

import grpc
import pytest

from salon.errors import UnknownReward, from_rpc_error
from salon.reward.v1 import reward_pb2 as pb
from tests.salon.files import encoded, noise

IMAGE = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(noise()))
FAULTY = "tests.services.faulty"


def scored(*prompts, reward="faulty"):
    samples = [pb.Sample(image=IMAGE, prompt=prompt) for prompt in prompts]
    return pb.ScoreRequest(reward=reward, samples=samples)


def test_all_hosted_rewards_are_listed_the_default_first(jpeg_service, stub):
    rewards = stub(jpeg_service).ListRewards(pb.ListRewardsRequest()).rewards
    names = [reward.name for reward in rewards]
    assert names == ["jpeg_compressibility", "jpeg_incompressibility"]
    for reward in rewards:
        request = pb.GetRewardRequest(reward=reward.name)
        assert stub(jpeg_service).GetReward(request).reward == reward
    assert stub(jpeg_service).GetReward(pb.GetRewardRequest()).reward == rewards[0]
    assert rewards[0].upper_bound == 0
    assert not rewards[0].HasField("lower_bound")


def test_the_unit_of_a_score_travels_with_the_reward_and_with_its_scores(jpeg_service, stub):
    reward = stub(jpeg_service).GetReward(pb.GetRewardRequest()).reward
    response = stub(jpeg_service).Score(scored("", reward="jpeg_compressibility"))
    assert (reward.unit, response.unit) == ("kB", "kB")
    assert reward.direction == response.direction == pb.DIRECTION_HIGHER_IS_BETTER


def test_an_unknown_reward_is_told_which_there_are(jpeg_service, stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub(jpeg_service).Score(scored("", reward="beauty"))
    error = from_rpc_error(caught.value, jpeg_service.target)
    assert isinstance(error, UnknownReward)
    assert "no reward 'beauty' here; this service hosts jpeg_compressibility" in str(error)


def test_the_same_sample_is_scored_once_where_scores_are_kept(start_service, stub):
    service = start_service(FAULTY, "--cache-scores", "10", "--metrics-port", "0")
    score = stub(service).Score
    executed = service.metric('exec_total{reward="faulty"}')
    first = score(scored("a", "raise", "details"))
    again = score(scored("details", "a", "new", "raise"))
    assert again.outcomes[0] == first.outcomes[2]
    assert again.outcomes[1] == first.outcomes[0]
    kinds = [outcome.WhichOneof("result") for outcome in again.outcomes]
    assert kinds == ["score", "score", "score", "error"]
    assert service.metric('cache_hits_total{reward="faulty"}') == 2
    assert service.metric('cache_misses_total{reward="faulty"}') == 3 + 2
    before = service.metric('exec_total{reward="faulty"}')
    assert before > executed
    assert score(scored("a", "new")).outcomes[0] == first.outcomes[0]
    assert service.metric('exec_total{reward="faulty"}') == before, "nothing was left to score"


def test_a_reference_reaches_the_reward_that_needs_one(start_service, stub):
    service = start_service(f"{FAULTY}:Distance")
    bright = pb.Image(format=pb.IMAGE_FORMAT_GRAY8, data=bytes([7] * 6), height=2, width=3)
    dark = pb.Image(format=pb.IMAGE_FORMAT_GRAY8, data=bytes([2] * 6), height=2, width=3)
    broken = pb.Image(format=pb.IMAGE_FORMAT_GRAY8, data=b"x", height=2, width=3)
    samples = [
        pb.Sample(image=bright, reference=dark),
        pb.Sample(image=bright),
        pb.Sample(image=bright, reference=broken),
    ]
    outcomes = stub(service).Score(pb.ScoreRequest(samples=samples)).outcomes
    assert outcomes[0].score == 5
    assert outcomes[1].error.code == pb.ERROR_CODE_MISSING_INPUT
    assert "INPUT_REFERENCE" in outcomes[1].error.message
    assert outcomes[2].error.code == pb.ERROR_CODE_INVALID_IMAGE


def test_only_images_that_were_read_are_counted(start_service, stub):
    service = start_service(FAULTY, "--metrics-port", "0")
    score = stub(service).Score

    def counted():
        names = ("image_total", "image_bytes_total")
        return [service.metric(f'{name}{{reward="faulty"}}') for name in names]

    sliced = pb.Image(format=pb.IMAGE_FORMAT_RGB8, slice=pb.Slice(length=2**63), height=1, width=1)
    score(pb.ScoreRequest(samples=[pb.Sample(image=sliced)] * 3))
    with pytest.raises(grpc.RpcError):
        score(pb.ScoreRequest(samples=[pb.Sample(image=IMAGE)] * 2, instance="refused"))
    assert counted() == [0, 0]
    score(scored("a", "b"))
    assert counted() == [2, 2 * len(IMAGE.data)]


def test_more_calls_than_may_be_held_are_refused_with_a_hint(start_service, patient, stub):
    service = start_service(FAULTY, "--max-concurrent-calls", "1")
    first = stub(service).Score.future(patient.request("first"))
    patient.await_began("first")
    with pytest.raises(grpc.RpcError) as caught:
        stub(service).ListRewards(pb.ListRewardsRequest())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert from_rpc_error(caught.value, service.target).retry_after_seconds > 0
    assert service.health() == "SERVING"
    patient.let_go()
    assert first.result().outcomes[0].score == 1
