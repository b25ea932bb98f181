import contextlib
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from PIL import Image

from salon import (
    DeadlineExceeded,
    InvalidRequest,
    Outcome,
    RewardClient,
    ServiceUnavailable,
    UnknownReward,
)
from salon.client.channel import METHOD_SCORE, connect
from salon.errors import Overloaded, RewardFailed, from_rpc_error, to_status
from salon.reward.v1 import reward_pb2, reward_pb2_grpc
from tests.fixtures.service import free_port, wait_until
from tests.salon.files import encoded, noise


@pytest.fixture
def client(jpeg_service):
    with RewardClient(jpeg_service.target) as client:
        yield client


def kilobytes(image):
    return len(encoded(image, "JPEG", quality=95)) / 1000


def test_arrays_pillow_images_and_files_score_alike(client):
    pixels = noise(40, 50)
    outcomes = client.score([pixels, Image.fromarray(pixels), encoded(pixels)])
    assert [outcome.score for outcome in outcomes] == [-kilobytes(pixels)] * 3
    assert {(outcome.reward, outcome.error) for outcome in outcomes} == {
        ("jpeg_compressibility", None)
    }


def test_a_reward_is_described(client):
    reward = client.describe("jpeg_incompressibility")
    assert reward.name == "jpeg_incompressibility"
    assert list(reward.inputs) == [reward_pb2.INPUT_IMAGE]
    assert reward.direction == reward_pb2.DIRECTION_HIGHER_IS_BETTER
    assert (reward.HasField("lower_bound"), reward.lower_bound) == (True, 0.0)
    assert not reward.HasField("upper_bound")
    assert reward.limits.max_message_bytes == 16 * 1024 * 1024
    assert client.describe().name == "jpeg_compressibility"


def test_ten_thousand_images_are_split_for_the_caller_and_refused_in_one_call(client, jpeg_service):
    images = np.random.default_rng(0).integers(0, 256, (10_000, 2, 2, 3), np.uint8)
    outcomes = client.score(images, reward="jpeg_incompressibility")
    assert len(outcomes) == 10_000
    for index in (0, 1023, 1024, 9_999):
        assert outcomes[index].score == kilobytes(images[index])

    sample = reward_pb2.Sample(
        image=reward_pb2.Image(
            format=reward_pb2.IMAGE_FORMAT_RGB8, data=bytes(12), height=2, width=2
        )
    )
    with connect(jpeg_service.target) as channel, pytest.raises(grpc.RpcError) as caught:
        reward_pb2_grpc.RewardServiceStub(channel).Score(
            reward_pb2.ScoreRequest(samples=[sample] * 10_000)
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than 1024 samples in one call: split the batch" in caught.value.details()


def test_the_limits_of_the_service_are_kept(start_service):
    service = start_service(
        "jpeg", "--max-samples", "3", "--max-message-bytes", "40000", "--log-calls"
    )
    images = np.stack([noise(64, 64, seed=seed) for seed in range(11)])
    with RewardClient(service.target) as client:
        outcomes = client.score(images)
    assert [outcome.score for outcome in outcomes] == [-kilobytes(image) for image in images]
    calls = [event for event in service.events() if event.get("method") == "Score"]
    # Several are on their way at once: any may come first.
    assert sorted(call["samples"] for call in calls) == [2, 3, 3, 3]


def test_serialized_requests_are_scored(jpeg_service):
    pixels = noise()
    image = reward_pb2.Image(format=reward_pb2.IMAGE_FORMAT_PNG, data=encoded(pixels))
    request = reward_pb2.ScoreRequest(samples=[reward_pb2.Sample(image=image)])
    with connect(jpeg_service.target) as channel:
        payload = channel.unary_unary(METHOD_SCORE)(request.SerializeToString(), timeout=30)
    assert reward_pb2.ScoreResponse.FromString(payload).outcomes[0].score == -kilobytes(pixels)


def test_an_unknown_reward_lists_those_hosted(client, jpeg_service):
    hosted = "hosts jpeg_compressibility, jpeg_incompressibility"
    with pytest.raises(UnknownReward, match=f"{jpeg_service.target}.*'beauty'.*{hosted}"):
        client.score([noise()], reward="beauty")


def test_a_batch_that_cannot_be_sent_is_refused_before_it_is(client):
    with pytest.raises(InvalidRequest, match="empty"):
        client.score([])
    with pytest.raises(InvalidRequest, match="2 images but 1 prompts"):
        client.score([noise(), noise()], ["a"])


class Reluctant(reward_pb2_grpc.RewardServiceServicer):
    """Answers UNAVAILABLE, or another status, a number of times first."""

    def __init__(self, refusals, code=grpc.StatusCode.UNAVAILABLE, status=None):
        self.refusals = refusals
        self.code = code
        self.status = status
        self.attempts = 0

    def GetReward(self, request, context):  # noqa: N802
        return reward_pb2.GetRewardResponse(
            reward=reward_pb2.Reward(limits=reward_pb2.Limits(max_samples=1000))
        )

    def Score(self, request, context):  # noqa: N802
        self.attempts += 1
        if self.attempts <= self.refusals and self.status:
            context.abort_with_status(self.status)
        if self.attempts <= self.refusals:
            context.abort(self.code, "not yet")
        outcomes = [reward_pb2.Outcome(score=len(sample.image.data)) for sample in request.samples]
        return reward_pb2.ScoreResponse(outcomes=outcomes)


@pytest.fixture
def reluctant():
    """Serve a Reluctant; its target."""
    servers = []

    def serve(servicer):
        options = [("grpc.max_receive_message_length", 32 * 1024 * 1024)]
        servers.append(grpc.server(ThreadPoolExecutor(2), options=options))
        reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, servers[-1])
        port = servers[-1].add_insecure_port("127.0.0.1:0")
        servers[-1].start()
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize("side", [580, 2300])  # 1.0 MB; 15.9 MB, just under a message's limit
def test_a_big_request_is_repeated_while_the_service_is_unavailable(reluctant, side):
    servicer = Reluctant(refusals=2)
    with RewardClient(reluctant(servicer)) as client:
        [outcome] = client.score([np.zeros((side, side, 3), np.uint8)])
    assert outcome.score == side * side * 3
    assert servicer.attempts == 3


def test_other_statuses_are_not_repeated(reluctant):
    servicer = Reluctant(refusals=1, code=grpc.StatusCode.INVALID_ARGUMENT)
    with (
        RewardClient(reluctant(servicer)) as client,
        pytest.raises(InvalidRequest, match="not yet"),
    ):
        client.score([noise()])
    assert servicer.attempts == 1


def test_a_service_that_is_full_is_asked_again_when_it_says(reluctant):
    servicer = Reluctant(refusals=3, status=to_status(Overloaded("full", 0.2)))
    started = time.monotonic()
    with RewardClient(reluctant(servicer)) as client:
        [outcome] = client.score([noise()])
    assert outcome.score == noise().size
    assert servicer.attempts == 4
    assert time.monotonic() - started >= 0.6


@pytest.mark.parametrize(
    ("hint", "deadline"),
    [
        pytest.param(None, 30, id="waiting does not help"),
        pytest.param(60, 30, id="room comes after the deadline"),
    ],
)
def test_a_service_that_will_have_no_room_in_time_is_named(reluctant, hint, deadline):
    servicer = Reluctant(refusals=9, status=to_status(Overloaded("full", hint)))
    with (
        RewardClient(reluctant(servicer)) as client,
        pytest.raises(Overloaded, match="full") as caught,
    ):
        client.score([noise()], deadline=deadline)
    assert caught.value.retry_after_seconds == hint
    assert servicer.attempts == 1


def test_the_rewards_of_a_service_are_listed(client):
    rewards = client.list_rewards()
    assert [reward.name for reward in rewards] == ["jpeg_compressibility", "jpeg_incompressibility"]
    assert rewards[1] == client.describe("jpeg_incompressibility")


def test_a_service_that_is_not_there_is_named():
    target = f"127.0.0.1:{free_port()}"
    with RewardClient(target) as client, pytest.raises(ServiceUnavailable, match=target):
        client.score([noise()])


@pytest.mark.parametrize("deadline", [float("inf"), float("nan"), -1, 0, 1e12, None, "60"])
def test_what_is_no_deadline_is_refused_by_its_value(client, deadline):
    words = re.escape(f"deadline is {deadline!r}: pass seconds, more than 0")
    for call in (
        lambda: client.score([noise()], deadline=deadline),
        lambda: client.describe(deadline=deadline),
        lambda: client.list_rewards(deadline),
    ):
        with pytest.raises(InvalidRequest, match=words):
            call()
    [outcome] = client.score([noise()], deadline=np.float32(3e7))
    assert outcome.score == -kilobytes(noise())


@pytest.mark.parametrize("deadline", [0.3, 2])
def test_where_nothing_listens_a_short_deadline_is_not_blamed(deadline):
    target = f"127.0.0.1:{free_port()}"
    with RewardClient(target) as client, pytest.raises(ServiceUnavailable) as caught:
        client.score([noise()], deadline=deadline)
    assert target in str(caught.value)
    assert "nothing answers there (Connection refused)" in str(caught.value)
    assert "check that it runs there" in str(caught.value)
    assert "longer deadline" not in str(caught.value)


def test_what_never_answers_is_told_apart_from_what_is_busy():
    with socket.socket() as deaf:  # listens, and its queue of one connection is full
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        target = f"127.0.0.1:{deaf.getsockname()[1]}"
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(deaf.getsockname())
            words = "nothing answers there (no answer within 0.25 s)"
            with (
                RewardClient(target) as client,
                pytest.raises(ServiceUnavailable, match=re.escape(words)),
            ):
                client.describe(deadline=0.3)


def test_a_sample_that_is_too_large_is_told_what_of_it_is(client):
    with pytest.raises(InvalidRequest, match=r"takes 17\d{6} bytes.*send less metadata or prompt"):
        client.score([noise()], metadata=[{"text": "a" * 17_000_000}])
    with pytest.raises(InvalidRequest, match="send the image as PNG bytes"):
        client.score([np.zeros((2600, 2600, 3), np.uint8)])


def test_a_reply_that_is_too_large_names_its_size_and_the_limit(start_service):
    service = start_service("tests.services.faulty", "--max-message-bytes", "100000")
    with RewardClient(service.target) as client:
        prompts = ["small", "details of 200000", "details of 20"]
        few = client.score([noise()] * 3, prompts, "faulty")
        with pytest.raises(
            RewardFailed, match=r"faulty to 600 samples takes 2\d{5} bytes, at most"
        ):
            client.score([noise(2, 2)] * 600, ["details of 320"] * 600, "faulty")
    assert [outcome.error is None for outcome in few] == [True, False, True]
    assert "takes 2000" in str(few[1].error)
    assert "3 share a reply of 100000" in str(few[1].error)
    assert "--max-message-bytes" in str(few[1].error)
    with (
        RewardClient(service.target, max_message_bytes=65536) as client,
        pytest.raises(Overloaded) as caught,
    ):
        client.score([noise()], ["details of 80000"], "faulty")
    assert "the reply takes 80" in str(caught.value)
    assert "at most 65536 are accepted" in str(caught.value)
    assert "raise max_message_bytes here" in str(caught.value)
    assert "try again" not in str(caught.value)


def test_a_request_that_is_too_large_names_its_size_and_the_limit(start_service):
    service = start_service("jpeg", "--max-message-bytes", "100000")
    with connect(service.target) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD_SCORE)(bytes(200_000), timeout=30)
    words = str(from_rpc_error(caught.value, service.target))
    assert "the request takes 200000 bytes, at most 100000 are accepted" in words
    assert "--max-message-bytes of the service" in words
    assert "try again" not in words


def test_one_deadline_covers_all_messages(start_service, tmp_path):
    service = start_service("tests.services.faulty", "--max-samples", "1")
    waits = [{"folder": str(tmp_path)}] * 2 + [{"folder": str(tmp_path), "wait": True}] * 2
    with RewardClient(service.target) as client:
        client.score([noise()], ["first"], "patient", waits[:1])  # connects, which takes its time
        with pytest.raises(DeadlineExceeded, match=service.target):
            client.score([noise()] * 4, ["a", "b", "c", "d"], "patient", waits, deadline=2)
        with pytest.raises(DeadlineExceeded, match=service.target):
            client.score([noise()], ["e"], "patient", [{"folder": str(tmp_path)}], deadline=1e-9)
    began = {path.stem for path in tmp_path.glob("*.began")}
    # The messages come in any order. The first that waits holds up the rest until their deadline.
    assert len(began & {"c", "d"}) == 1
    assert "e" not in began


def test_a_client_goes_on_when_its_service_is_killed_and_started_again(start_service):
    service = start_service("jpeg", port=free_port())
    images = np.stack([noise(64, 64, seed=seed) for seed in range(100)])
    expected = [-kilobytes(image) for image in images]
    rounds: list[list[Outcome]] = []
    enough = threading.Event()

    def score_on():
        with RewardClient(service.target) as client:
            while not enough.is_set():
                rounds.append(client.score(images, deadline=60))

    with ThreadPoolExecutor(1) as pool:
        loop = pool.submit(score_on)
        wait_until(lambda: len(rounds) >= 3, "three rounds before the kill")
        service.kill()
        start_service("jpeg", port=service.port)
        after = len(rounds)
        wait_until(lambda: len(rounds) >= after + 3 or loop.done(), "three rounds after it")
        enough.set()
        loop.result()
    assert [[outcome.score for outcome in outcomes] for outcomes in rounds] == [expected] * len(
        rounds
    )
