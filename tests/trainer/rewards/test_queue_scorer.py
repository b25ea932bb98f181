"""The scorer alone with a real Redis: the tests are its workers, and take Redis away."""

import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from salon.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RewardFailed,
    SalonError,
    UnknownInstance,
    VersionMismatch,
)
from salon.queue.broker import create_app
from salon.queue.connection import connect
from salon.queue.replies import Reply, ReplyKind, ReplyStream
from salon.reward.v1 import reward_pb2
from salon.wire.structs import to_dict
from tests.fixtures.service import wait_until
from trainer.rewards import queue_scorer
from trainer.rewards.queue_scorer import QueueScorer
from trainer.rewards.scorer import Scale
from trainer.rewards.versions import RewardVersions
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted

SECONDS = 30


class Worker:
    """A scorer of one reward, and the answers to it."""

    def __init__(
        self, settings, server, deadline=60.0, on_waiting=print, references=None, **changes
    ):
        settings = settings.model_copy(update={"redis_url": server.url, **changes})
        self.interrupt, self.versions = Interrupt(), RewardVersions()
        self._redis = connect(server.url)
        self.scorer = QueueScorer(
            create_app(settings),
            self._redis,
            settings,
            rewards=["r"],
            on_reward_error="fail",
            deadline_seconds=deadline,
            interrupt=self.interrupt,
            on_waiting=on_waiting,
            versions=self.versions,
            references=references,
        )

    def submit(self, side=4):
        return self.scorer.submit(np.zeros((1, side, side, 3), np.uint8), ["a prompt"])

    def answer(self, kind, body, error=""):
        self.send(self.scorer._window.requests()[0], kind, body, error)

    def send(self, pending, kind, body, error=""):
        reply = Reply(pending.message.batch, kind, body, error)
        ReplyStream(self._redis, self.scorer._name, 60).send(reply)

    def score(self, version="1", **changes):
        response = reward_pb2.ScoreResponse(reward="r", version=version, **changes)
        response.outcomes.add(score=0.5)
        self.answer(ReplyKind.SCORED, response.SerializeToString())


@pytest.fixture
def worker(settings, own_redis, monkeypatch):
    monkeypatch.setattr(queue_scorer, "REDIS_SECONDS", 0.5)
    made = []

    def make(**options):
        made.append(Worker(settings, own_redis, **options))
        return made[-1]

    yield make
    for one in made:
        one.scorer.close()


def test_a_batch_says_which_version_scored_it(worker):
    jury = worker()
    for version in ("1", "2"):
        future = jury.submit()
        jury.score(version)
        batch = future.result(SECONDS)
        assert batch.per_reward["r"] == [0.5]
        assert batch.versions == {"r": (version,)}
        assert jury.versions.state_dict() == {"r": version}


def test_a_batch_says_in_what_unit_it_was_scored_and_which_way_is_better(worker):
    jury = worker()
    future = jury.submit()
    jury.score(unit="kB", direction=reward_pb2.DIRECTION_LOWER_IS_BETTER)
    assert future.result(SECONDS).scales == {"r": Scale("kB", lower_is_better=True)}
    future = jury.submit()
    jury.score()  # a service of an older release says neither
    assert future.result(SECONDS).scales == {"r": Scale("", lower_is_better=False)}


def request_of(jury):
    """What a worker would hand to the service, of the only request there is."""
    [pending] = jury.scorer._window.requests()
    blob = jury.scorer._blobs.get(pending.message.reference)
    return reward_pb2.ScoreRequest.FromString(blob)


def test_a_request_has_what_each_row_carries(worker, tmp_path):
    jury = worker()
    for value in (1, 2):
        Image.new("RGB", (2, 1), (value, 0, 0)).save(tmp_path / f"{value}.png")
    files = [str(tmp_path / "1.png"), None, str(tmp_path / "2.png"), str(tmp_path / "1.png")]
    images = np.zeros((4, 2, 2, 3), np.uint8)
    jury.scorer.submit(images, list("abcd"), [None, {"a": 1}, None, None], files)
    samples = request_of(jury).samples
    assert [sample.prompt for sample in samples] == list("abcd")
    assert [sample.HasField("metadata") for sample in samples] == [False, True, False, False]
    assert to_dict(samples[1].metadata) == {"a": 1}
    assert [sample.HasField("reference") for sample in samples] == [True, False, True, True]
    reds = [sample.reference.data[:1] for sample in samples]
    assert reds == [b"\1", b"", b"\2", b"\1"]


def test_a_request_compares_with_what_the_rewards_entry_names_before_what_rows_do(worker, tmp_path):
    jury = worker(references={"r": np.full((1, 1, 3), 7, np.uint8)})
    Image.new("RGB", (1, 1)).save(tmp_path / "row.png")
    images = np.zeros((2, 2, 2, 3), np.uint8)
    jury.scorer.submit(images, ["a", "b"], None, [str(tmp_path / "row.png"), None])
    assert [sample.reference.data for sample in request_of(jury).samples] == [b"\7\7\7"] * 2


def test_a_reference_that_is_gone_is_named_and_nothing_is_sent(worker, tmp_path):
    jury = worker()
    with pytest.raises(InvalidRequest, match=rf"cannot read reference {tmp_path}/gone\.png"):
        jury.scorer.submit(np.zeros((1, 2, 2, 3), np.uint8), ["a"], None, [f"{tmp_path}/gone.png"])
    assert jury.scorer._window.requests() == []


def test_scores_that_cannot_be_read_are_an_error_of_their_batch_alone(worker):
    jury = worker()
    future = jury.submit()
    jury.answer(ReplyKind.SCORED, b"\xff\xff")
    with pytest.raises(SalonError, match=r"scores of reward r cannot be read \(DecodeError"):
        future.result(SECONDS)
    future = jury.submit()
    jury.score()
    assert future.result(SECONDS).valid.all()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("UnknownInstance", UnknownInstance),
        ("VersionMismatch", VersionMismatch),
        ("RewardFailed", RewardFailed),
        ("SalonError", SalonError),
        ("", SalonError),  # of a worker of an older release
        ("OfTheFuture", SalonError),
        ("KeyError", SalonError),
        ("__import__", SalonError),
    ],
)
def test_a_batch_fails_with_the_class_that_it_failed_with(worker, error, kind):
    jury = worker()
    future = jury.submit()
    jury.answer(ReplyKind.FAILED, b"no instance 'job'", error)
    with pytest.raises(SalonError, match=r"^no instance 'job'$") as caught:
        future.result(SECONDS)
    assert type(caught.value) is kind


def test_a_batch_waits_until_there_is_room_for_its_bytes(worker, tmp_path):
    root = tmp_path / "shared"
    jury = worker(shared_dir=root, pending_bytes=2000)
    # Of 16 x 16 pixels, 768 bytes and less than a hundred of the request: two have room.
    first, second = jury.submit(16), jury.submit(16)
    with ThreadPoolExecutor(1) as trainer:
        large = trainer.submit(jury.submit, 64)
        wait_until(lambda: len(list(root.glob("salon-batch-*"))) == 3, "the third is written")
        jury.score()
        assert first.result(SECONDS).valid.all()
        assert len(jury.scorer._window.requests()) == 1
        assert not large.done()
        jury.score()
        assert second.result(SECONDS).valid.all()
        # It is larger than the bound, and alone.
        future = large.result(SECONDS)
    jury.score()
    assert future.result(SECONDS).valid.all()
    assert list(root.glob("salon-batch-*")) == []


def test_a_redis_without_room_for_pixels_is_named_and_asked_now_and_then(
    worker, tmp_path, monkeypatch
):
    monkeypatch.setattr(queue_scorer, "SILENCE_SECONDS", 0)
    told, asked = [], []
    jury = worker(on_waiting=told.append, shared_dir=tmp_path)
    real = jury.scorer._collector_blobs.put

    def full(data):
        asked.append(data)
        raise Overloaded("Redis has no room for a blob", 60.0)

    monkeypatch.setattr(jury.scorer._collector_blobs, "put", full)
    futures = [jury.submit() for _ in range(3)]
    requests = jury.scorer._window.requests()
    for pending in requests:
        jury.send(pending, ReplyKind.RESEND, b"")
    wait_until(lambda: all(one.note for one in requests), "all know why they wait")
    assert {one.note for one in requests} == {"Redis has no room for a blob"}
    assert len(asked) == 1, "three batches, several rounds, one question"
    wait_until(lambda: "Redis has no room for a blob" in told, "people are told")
    monkeypatch.setattr(jury.scorer._collector_blobs, "put", real)
    jury.scorer._full_until = 0.0
    wait_until(lambda: not list(tmp_path.glob("salon-batch-*")), "the pixels are in Redis")
    for future in futures:
        jury.score()
        assert future.result(SECONDS).valid.all()


def test_an_interrupt_ends_the_wait_for_room(worker, tmp_path):
    jury = worker(shared_dir=tmp_path, pending_batches=1)
    jury.submit()
    with ThreadPoolExecutor(1) as trainer:
        second = trainer.submit(jury.submit)
        wait_until(lambda: len(list(tmp_path.glob("salon-batch-*"))) == 2, "it is written")
        jury.interrupt.set(Cause.CANCELLED)
        with pytest.raises(Interrupted):
            second.result(SECONDS)
    wait_until(lambda: not list(tmp_path.glob("salon-batch-*")), "no file is left")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def test_a_deadline_and_an_interrupt_end_the_wait_while_redis_is_away(worker, own_redis, number):
    late, stopped = worker(deadline=1.0), worker()
    futures = late.submit(), stopped.submit()
    own_redis.process.send_signal(number)
    stopped.interrupt.set(Cause.PREEMPTED)
    with pytest.raises(DeadlineExceeded):
        futures[0].result(SECONDS)
    with pytest.raises(Interrupted):
        futures[1].result(SECONDS)
    for one in (late, stopped):
        one.scorer.close()  # raises nothing
    own_redis.process.send_signal(signal.SIGCONT)


def test_whatever_goes_wrong_while_redis_is_away_the_collector_goes_on(worker, own_redis):
    def fail(_):
        own_redis.stop()
        raise ValueError("nobody listens")

    jury = worker(on_waiting=fail)
    future = jury.submit()
    jury.answer(ReplyKind.WAITING, b"away \xff")
    with pytest.raises(ValueError, match="nobody listens"):
        future.result(SECONDS)
    own_redis.start()
    future = jury.submit()
    jury.score()
    assert future.result(SECONDS).valid.all()
