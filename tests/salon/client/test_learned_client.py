from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice

import grpc
import numpy as np
import pytest
import torch

from salon import InvalidRequest, Overloaded
from salon.client import Export, LearnedRewardClient, compared, labelled
from salon.errors import to_status
from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1 import learned_reward_pb2_grpc, reward_pb2, reward_pb2_grpc
from salon.serving import Labelled
from services.learned.instance import REMEMBERED_FITS
from tests.salon.files import encoded, noise
from tests.services.learned.learning import discriminator, fit, sample

SMALL = {"image_size": 16, "base_width": 4, "batch_size": 8, "replay_capacity": 64}


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def examples():
    return chain(labelled(images(25, 0), real=True), labelled(images(25, 1), real=False))


@pytest.fixture
def one_thread():
    """PyTorch computes with one thread here too, as in the services: sums round alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_examples_are_split_for_the_caller_and_a_repeated_fit_is_made_once(start_service, tmp_path):
    limits = ("--max-samples", "20", "--max-message-bytes", "13000", "--log-calls")
    service = start_service("discriminator", "--set", f"state_dir={tmp_path / 'split'}", *limits)
    with LearnedRewardClient(service.target) as client:
        split = client.fit("job", examples(), 3, request_id="a", hyperparameters=SMALL)
        again = client.fit("job", examples(), 3, request_id="a", hyperparameters=SMALL)
        exported = client.export("job")
        assert client.import_("job", exported.data) == split.version
        assert client.export("job") == exported
    assert again == split
    assert exported.version == split.version
    calls = [event["samples"] for event in service.events() if event.get("method") == "Fit"]
    # 15 images of 768 bytes, and a little, fill 13000 bytes.
    assert calls == [15, 15, 15, 5] * 2

    with closing(discriminator(tmp_path / "whole")) as reward:
        whole = [Labelled(sample(image), real=True) for image in images(25, 0)]
        whole += [Labelled(sample(image), real=False) for image in images(25, 1)]
        fitted = fit(reward, "job", whole, 3, **SMALL)
    assert fitted.metrics == split.metrics
    # One fit instead of four made the same weights.
    assert fitted.version.replace("@1-", "@4-") == split.version


class Reluctant(
    learned_reward_pb2_grpc.LearnedRewardServiceServicer, reward_pb2_grpc.RewardServiceServicer
):
    """Answers UNAVAILABLE a number of times first, and remembers what it was asked."""

    def __init__(self, refusals):
        self.refusals = refusals
        self.hint = 0.01  # seconds until there may be a place
        self.limits = {"max_samples": 1000, "max_message_bytes": 16_000_000}
        self.requests = []

    def GetReward(self, request, context):  # noqa: N802
        limits = reward_pb2.Limits(**self.limits)
        return reward_pb2.GetRewardResponse(reward=reward_pb2.Reward(limits=limits))

    def Fit(self, request, context):  # noqa: N802
        self.requests.append(request)
        if len(self.requests) <= self.refusals:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return wire.FitResponse(version="1", metrics={"loss": 0.5})

    def Export(self, request, context):  # noqa: N802
        self.requests.append(request)
        if len(self.requests) <= self.refusals:
            context.abort_with_status(to_status(Overloaded("all places are taken", self.hint)))
        yield wire.ExportResponse(version="1", data=b"ab")
        yield wire.ExportResponse(data=b"c")

    def Import(self, request_iterator, context):  # noqa: N802
        self.requests.append(b"".join(piece.data for piece in request_iterator))
        if len(self.requests) <= self.refusals:
            context.abort_with_status(to_status(Overloaded("all places are taken", self.hint)))
        return wire.ImportResponse(version="1")


@pytest.fixture
def reluctant():
    """A Reluctant that refuses twice, and a client of it."""
    servicer = Reluctant(refusals=2)
    server = grpc.server(ThreadPoolExecutor(2))
    reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server)
    learned_reward_pb2_grpc.add_LearnedRewardServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with LearnedRewardClient(f"127.0.0.1:{port}") as client:
        yield servicer, client
    server.stop(0).wait()


def test_a_repeat_by_the_channel_is_recognisable_and_two_fits_are_told_apart(reluctant):
    servicer, client = reluctant
    assert client.fit("job", examples(), 3, hyperparameters=SMALL).metrics == {"loss": 0.5}
    assert len(servicer.requests) == 3
    assert len({request.SerializeToString() for request in servicer.requests}) == 1
    client.fit("job", [], 1)
    assert servicer.requests[3].request_id != servicer.requests[2].request_id


def test_an_export_and_an_import_wait_for_a_place(reluctant):
    servicer, client = reluctant
    assert client.export("job") == Export("1", b"abc")
    assert len(servicer.requests) == 3
    servicer.requests.clear()
    assert client.import_("job", b"abc") == "1"
    assert servicer.requests == [b"abc"] * 3
    servicer.requests.clear()
    servicer.hint = 60.0
    with pytest.raises(Overloaded, match="all places are taken"):
        client.export("job", deadline=30)
    assert len(servicer.requests) == 1


def test_more_parts_than_an_instance_remembers_are_refused_before_one_is_sent(reluctant):
    servicer, client = reluctant
    servicer.refusals = 0
    servicer.limits["max_samples"] = 3
    with pytest.raises(InvalidRequest, match="more than 16 messages: send them in several fits"):
        client.fit("job", examples(), 3)
    assert servicer.requests == []
    client.fit("job", islice(examples(), 48), 3, request_id="a")
    assert [request.request_id for request in servicer.requests] == [f"a/{i}" for i in range(16)]
    assert [request.steps for request in servicer.requests] == [0] * 15 + [3]
    assert len(servicer.requests) <= REMEMBERED_FITS


def test_a_service_that_tells_no_limits_gets_one_example_at_a_time(reluctant):
    servicer, client = reluctant
    servicer.refusals = 0
    servicer.limits.clear()
    client.fit("job", islice(examples(), 3), 1)
    assert [len(request.examples) for request in servicer.requests] == [1, 1, 1]
    assert client.import_("job", b"abc") == "1"


def test_a_name_that_leaves_no_room_for_the_parts_number_is_refused(reluctant):
    servicer, client = reluctant
    client.fit("job", [], 1, request_id="é" * 60)
    servicer.requests.clear()
    with pytest.raises(InvalidRequest, match="request_id takes 122 bytes of UTF-8, at most 120"):
        client.fit("job", [], 1, request_id="é" * 61)
    assert servicer.requests == []


def test_what_is_sent_is_what_was_given(reluctant):
    servicer, client = reluctant
    picture, reference = noise(16, 16), noise(16, 16, seed=1)
    given = chain(
        labelled([picture], real=False, references=[encoded(reference)]),
        compared([picture], [reference], [0.5]),
    )
    client.fit("job", given, 7, reward="mine", base_version="v", hyperparameters={"seed": 3})
    request = servicer.requests[-1]
    assert (request.reward, request.instance, request.base_version) == ("mine", "job", "v")
    assert (request.steps, dict(request.hyperparameters)) == (7, {"seed": 3.0})
    first, second = request.examples
    assert first.labelled.origin == wire.ORIGIN_GENERATED
    assert first.labelled.sample.image.data == picture.tobytes()
    assert first.labelled.sample.reference.format == reward_pb2.IMAGE_FORMAT_PNG
    assert first.labelled.sample.reference.data == encoded(reference)
    assert second.comparison.preference == 0.5
    assert second.comparison.second.image.data == reference.tobytes()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: labelled([noise()], real=True, references=[]), "1 images but 0 references"),
        (lambda: compared([noise()], [noise()], []), "1 first images, 1 second ones and 0 pref"),
        (lambda: compared([noise()], ["x"], [1.0]), "second image 0 is a str"),
        (lambda: labelled(np.zeros((16, 16, 3), np.uint8), real=True), r"must be \[N, H, W, C\]"),
    ],
)
def test_examples_that_cannot_be_sent_are_refused(given, words):
    with pytest.raises(InvalidRequest, match=words):
        list(given())


def test_an_example_larger_than_a_message_is_refused_before_it_is_sent(reluctant):
    servicer, client = reluctant
    huge = labelled([np.zeros((2400, 2400, 3), np.uint8)], real=True)
    with pytest.raises(InvalidRequest, match=r"example 0 takes 172800\d\d bytes, more"):
        client.fit("job", huge, 1)
    with pytest.raises(InvalidRequest, match="hyperparameters cannot be sent"):
        client.fit("job", [], 1, hyperparameters={"seed": object()})
    assert servicer.requests == []
