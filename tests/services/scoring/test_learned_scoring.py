"""Scores of a learned reward's instances, at a real service."""

import grpc
import pytest

from salon.errors import InvalidRequest, UnknownInstance, from_rpc_error
from salon.reward.v1 import learned_reward_pb2 as learned_pb
from salon.reward.v1 import learned_reward_pb2_grpc
from salon.reward.v1 import reward_pb2 as pb
from tests.salon.files import encoded, noise

IMAGE = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(noise()))


@pytest.fixture
def service(start_service):
    return start_service("tests.services.remembering", "--metrics-port", "0")


@pytest.fixture
def learned(service):
    with grpc.insecure_channel(service.target) as channel:
        yield learned_reward_pb2_grpc.LearnedRewardServiceStub(channel)


def request(instance, *prompts):
    samples = [pb.Sample(image=IMAGE, prompt=prompt) for prompt in prompts]
    return pb.ScoreRequest(instance=instance, samples=samples)


def test_an_instance_scores_with_its_version_and_in_batches_of_its_own(service, learned, stub):
    for name, steps in (("a", 5), ("b", 1)):
        fit = learned_pb.FitRequest(instance=name, request_id=name, steps=steps)
        assert learned.Fit(fit).version == f"1+{steps}"
    score = stub(service).Score
    response = score(request("a", *"1234567"))
    assert (response.reward, response.version) == ("remembering", "1+5")
    assert [outcome.score for outcome in response.outcomes] == [5] * 7
    assert [outcome.details["batch"] for outcome in response.outcomes] == [3] * 6 + [1]
    assert service.metric('queue_duration_seconds_count{reward="remembering"}') == 7
    assert service.metric('pending_samples{reward="remembering"}') == 0
    assert score(request("b", "")).version == "1+1"
    kinds = [outcome.WhichOneof("result") for outcome in score(request("a", "", "raise")).outcomes]
    assert kinds == ["score", "error"]


def test_an_unknown_instance_is_not_an_unknown_reward(service, stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub(service).Score(request("nobody", ""))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    error = from_rpc_error(caught.value, service.target)
    assert isinstance(error, UnknownInstance)
    assert "'nobody'" in str(error)


def test_a_reward_that_does_not_learn_has_no_instances(jpeg_service, stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub(jpeg_service).Score(request("a", ""))
    assert isinstance(from_rpc_error(caught.value, jpeg_service.target), InvalidRequest)
    assert "leave ScoreRequest.instance empty" in caught.value.details()
