"""Requests that are no messages, or too much of one, at a real service."""

import grpc
import psutil
import pytest

from salon.errors import InvalidRequest, from_rpc_error
from salon.reward.v1 import learned_reward_pb2 as learned_pb
from salon.reward.v1 import reward_pb2 as pb
from tests.fixtures.service import Service

REWARD = "/salon.reward.v1.RewardService"
LEARNED = "/salon.reward.v1.LearnedRewardService"
MEBIBYTE = 1024 * 1024
NO_MESSAGE = b"\x0a\xff"  # a string that is cut short


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One that learns and keeps nothing."""
    log = tmp_path_factory.mktemp("requests") / "service.log"
    service = Service(log, "tests.services.remembering", "--metrics-port", "0")
    yield service
    assert service.stop() == 0


@pytest.fixture
def refusal(service):
    """The error in which a call of these bytes ends; `refusal(method, payload)`."""

    def call(method, payload):
        with grpc.insecure_channel(service.target) as channel:
            kind = method.rpartition("/")[-1]
            with pytest.raises(grpc.RpcError) as caught:
                if kind == "Export":
                    list(channel.unary_stream(method)(payload, timeout=30))
                elif kind == "Import":
                    channel.stream_unary(method)(iter([payload]), timeout=30)
                else:
                    channel.unary_unary(method)(payload, timeout=30)
        return from_rpc_error(caught.value, service.target)

    return call


@pytest.mark.parametrize("name", ["ListRewards", "GetReward", "Score"])
def test_bytes_that_are_no_request_are_refused_in_words(refusal, name):
    error = refusal(f"{REWARD}/{name}", NO_MESSAGE)
    assert type(error) is InvalidRequest
    assert f"the 2 bytes of the call are no {name}Request" in str(error)


@pytest.mark.parametrize("name", ["Fit", "Export", "Import", "Delete"])
def test_so_are_those_that_are_no_request_to_learn(refusal, service, name):
    error = refusal(f"{LEARNED}/{name}", NO_MESSAGE)
    assert type(error) is InvalidRequest
    assert f"the 2 bytes of the call are no {name}Request" in str(error)
    assert service.metric('request_total{code="INVALID_ARGUMENT",reward=""}') >= 1


def nested(values):
    """A Struct of a list of `values` empty values, two bytes each."""
    metadata = pb.Sample().metadata
    metadata["list"] = []
    body = metadata.fields["list"].list_value
    body.ParseFromString(b"\x0a\x00" * values)
    return metadata


def tiny_examples():
    return b"\x2a\x00" * (8 * MEBIBYTE - 512)


def tiny_values():
    example = learned_pb.Example()
    example.labelled.sample.metadata.CopyFrom(nested(4 * MEBIBYTE))
    return learned_pb.FitRequest(examples=[example]).SerializeToString()


def tiny_hyperparameters():
    request = learned_pb.FitRequest()
    request.hyperparameters.CopyFrom(nested(4 * MEBIBYTE))
    return request.SerializeToString()


def tiny_metadata():
    sample = pb.Sample()
    sample.metadata.CopyFrom(nested(4 * MEBIBYTE))
    return pb.ScoreRequest(samples=[sample]).SerializeToString()


@pytest.mark.parametrize(
    ("method", "make", "words"),
    [
        (f"{LEARNED}/Fit", tiny_examples, "more than 1024 examples in one call"),
        (f"{LEARNED}/Fit", tiny_values, "more than 262400 fields within"),
        (f"{LEARNED}/Fit", tiny_hyperparameters, "more than 262400 fields within"),
        (f"{REWARD}/Score", tiny_metadata, "more than 262400 fields within"),
    ],
)
def test_a_message_of_next_to_nothing_takes_no_more_memory_than_its_own(
    refusal, service, method, make, words
):
    payload = make()
    before = psutil.Process(service.process.pid).memory_info().rss
    error = refusal(method, payload)
    assert type(error) is InvalidRequest
    assert words in str(error)
    grown = psutil.Process(service.process.pid).memory_info().rss - before
    # gRPC holds up to five copies at once; what is made of the fields would be twenty and more.
    assert grown < 6 * len(payload)
