"""One try of one batch, at a service that answers as the test says."""

import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import redis

from salon.client.diagnosis import explain
from salon.errors import (
    Interrupted,
    InvalidRequest,
    Overloaded,
    RewardFailed,
    SalonError,
    ServiceUnavailable,
    UnknownInstance,
    UnknownReward,
    VersionMismatch,
    to_status,
)
from salon.queue.blobs import BlobStore, Reference
from salon.queue.broker import ScoreMessage
from salon.queue.connection import connect
from services.server.tls import TlsFiles, server_credentials
from tests.fixtures.certificates import Authority
from tests.fixtures.stack import wait_until
from workers import scoring

REFERENCE = Reference(key=f"salon:blob:{'0' * 32}", size=1, sha256="0" * 64, expires_at=0)


class Service(grpc.GenericRpcHandler):
    """Ends its calls as `script` says, one after the other; then it scores."""

    def __init__(self, target, credentials=None):
        self.script = []
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        if credentials is None:
            self._server.add_insecure_port(target)
        else:
            self._server.add_secure_port(target, credentials)
        self._server.start()

    def service(self, _details):
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def stop(self):
        self._server.stop(0).wait()

    def _answer(self, _request, context):
        if self.script:
            end = self.script.pop(0)
            if isinstance(end, grpc.StatusCode):
                context.abort(end, "bare")
            context.abort_with_status(to_status(end))
        return b"scores"


@pytest.fixture
def worker(settings, monkeypatch):
    """A worker's settings: a single attempt for each batch."""
    waits = {"score_task_seconds": 60, "service_wait_seconds": 30}
    settings = settings.model_copy(update={"score_attempts": 1, **waits})
    monkeypatch.setattr(scoring, "settings", settings)
    client = connect(settings.redis_url)
    monkeypatch.setattr(scoring, "_redis", lambda: client)
    yield settings
    scoring._service.cache_clear()
    scoring._explained.clear()


@pytest.fixture
def service(worker):
    made = Service(worker.reward_target)
    yield made
    made.stop()


@pytest.fixture
def batch():
    return ScoreMessage(batch="b" * 32, reward="r", reference=REFERENCE, reply_to="a" * 16)


@pytest.mark.parametrize(
    "answer", [ServiceUnavailable("it is starting"), Overloaded("full", 0.25)], ids=repr
)
def test_what_the_service_did_not_try_is_no_attempt(service, batch, answer):
    service.script = [answer] * 5
    for _ in range(5):
        with pytest.raises(scoring._Waiting, match=str(answer)):
            scoring._score(batch, b"")
    assert scoring._score(batch, b"") == b"scores"


@pytest.mark.parametrize(
    "answer",
    [Interrupted("cut off"), grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED],
    ids=repr,
)
def test_what_may_have_taken_down_the_service_is_one(service, batch, answer):
    service.script = [answer]
    with pytest.raises(scoring._Waiting):
        scoring._score(batch, b"")
    assert service.script == [], "one try is one call"
    with pytest.raises(SalonError, match=r"took down its worker or its service.* 1 times"):
        scoring._score(batch, b"")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (Overloaded("larger than the limit"), Overloaded),
        (InvalidRequest("no samples"), InvalidRequest),
        (UnknownReward("not r"), UnknownReward),
        (UnknownInstance("no instance 'job'"), UnknownInstance),
        (VersionMismatch("at version 2"), VersionMismatch),
        (RewardFailed("see the log"), RewardFailed),
    ],
    ids=repr,
)
def test_where_waiting_does_not_help_the_batch_fails_at_once_as_it_did_there(
    service, batch, answer, kind
):
    service.script = [answer]
    words = "bare" if isinstance(answer, grpc.StatusCode) else str(answer)
    target = scoring.settings.reward_target
    said = f"^reward service r at {target} refused a batch: {kind.grpc_code.name}: {words}"
    with pytest.raises(SalonError, match=said) as caught:
        scoring._score(batch, b"")
    assert type(caught.value) is kind


@pytest.fixture
def run(worker):
    """Runs the task on a message, which is data, and returns the fields of its one reply."""

    def run(message):
        scoring.score(message)
        [(_, fields)] = scoring._redis().xrange(f"salon:replies:{'a' * 16}")
        return fields

    return run


def test_a_reply_is_what_trainers_of_any_release_read(service, run, batch):
    """Those of before `error` was there read the other three, and leave what else there is."""
    blobs = BlobStore(scoring._redis(), 60)
    message = batch.model_copy(update={"reference": blobs.put(b"a request")})
    service.script = [UnknownInstance("no instance 'job'")]
    reply = run(message.model_dump(mode="json"))
    named = f"reward service r at {scoring.settings.reward_target}"
    assert reply == {
        b"batch": b"b" * 32,
        b"kind": b"failed",
        b"body": f"{named} refused a batch: NOT_FOUND: no instance 'job'".encode(),
        b"error": b"UnknownInstance",
    }
    assert not scoring._redis().keys("salon:blob:*")
    assert not scoring._redis().keys("salon:attempts:*")
    scoring._redis().delete(f"salon:replies:{'a' * 16}")
    message = batch.model_copy(update={"reference": blobs.put(b"a request")})
    assert run(message.model_dump(mode="json")) == {
        b"batch": b"b" * 32,
        b"kind": b"scored",
        b"body": b"scores",
    }


# What a trainer of before the version was in messages sent.
MESSAGE = {
    "batch": "b" * 32,
    "reward": "r",
    "reference": {
        "key": f"salon:blob:{'0' * 32}",
        "size": 9,
        "sha256": "af0bf2a562dabe2a81e0b0b47a33a515b5e8495c72fff218af4c15f3f066fa44",
        "expires_at": 1790000000.25,
    },
    "reply_to": "a" * 16,
    "job": "tiny-1a2b3c",
}


def test_a_message_of_an_older_trainer_is_read(service, run):
    scoring._redis().set(MESSAGE["reference"]["key"], b"a request")
    assert run(MESSAGE)[b"body"] == b"scores"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixels": "elsewhere"}, b"pixels Extra inputs are not permitted"),
        ({"reward": "r" * 257}, b"reward String should have at most 256 characters"),
        ({"reference": {**MESSAGE["reference"], "key": "salon:job:x"}}, b"reference.key String"),
    ],
    ids=str,
)
def test_a_message_that_cannot_be_read_is_answered(run, change, words):
    reply = run(MESSAGE | change)
    assert (reply[b"kind"], reply[b"error"]) == (b"failed", b"ValidationError")
    assert words in reply[b"body"]


NEWER = MESSAGE | {"v": 2, "reference": "of another kind", "pixels": "elsewhere"}


def test_a_message_of_a_newer_trainer_is_left_to_newer_workers(worker, monkeypatch):
    monkeypatch.setattr(scoring, "_again", lambda _, waiting: waiting)
    with pytest.raises(scoring._Waiting):
        scoring.score(NEWER)
    [(_, reply)] = scoring._redis().xrange(f"salon:replies:{'a' * 16}")
    assert reply[b"kind"] == b"waiting"
    assert re.search(rb"up to version 1, and the trainer's is 2: run workers", reply[b"body"])


def test_a_message_of_a_newer_trainer_that_nobody_takes_ends(run, monkeypatch):
    monkeypatch.setattr(scoring, "RETRY_SECONDS", (scoring.settings.blob_seconds,))
    scoring.score.push_request(retries=2, called_directly=True)
    try:
        reply = run(NEWER)
    finally:
        scoring.score.pop_request()
    assert (reply[b"kind"], reply[b"error"]) == (b"failed", b"SalonError")
    assert b"run workers of the trainer's release" in reply[b"body"]


@pytest.mark.parametrize("change", [{"reply_to": "salon:jobs"}, {"batch": "*"}, {"v": 0}], ids=str)
def test_what_nobody_can_be_asked_to_wait_for_is_dropped(worker, change):
    before = scoring._redis().keys("*")
    scoring.score(MESSAGE | change)
    assert scoring._redis().keys("*") == before


def test_whatever_goes_wrong_in_a_worker_its_trainer_hears_of_it(run, batch, monkeypatch):
    def fail(*_):
        raise KeyError("target\ud800")

    monkeypatch.setattr(scoring, "_score", fail)
    reference = BlobStore(scoring._redis(), 60).put(b"a request")
    message = batch.model_copy(update={"reference": reference})
    reply = run(message.model_dump(mode="json"))
    assert (reply[b"kind"], reply[b"error"]) == (b"failed", b"KeyError")
    assert b"failed (KeyError: 'target" in reply[b"body"]
    assert not scoring._redis().keys("salon:blob:*")


def test_a_redis_that_is_lost_is_no_answer(worker, batch, monkeypatch):
    def fail(*_):
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(scoring, "_score", fail)
    reference = BlobStore(scoring._redis(), 60).put(b"a request")
    message = batch.model_copy(update={"reference": reference})
    with pytest.raises(redis.ConnectionError):
        scoring.score(message.model_dump(mode="json"))
    assert scoring._redis().keys("salon:blob:*"), "it is there when the batch is sent again"


def test_pauses_grow_or_are_the_services_own_and_stay_below_the_senders_patience(worker):
    assert worker.resend_seconds / 2 == 3.5
    waiting = scoring._Waiting("away")
    assert [waiting.pause(tries) for tries in (0, 1, 2, 99)] == [1.0, 2.0, 3.5, 3.5]
    assert scoring._Waiting("full", 0.25).pause(7) == 0.25
    assert scoring._Waiting("full", 60.0).pause(0) == 3.5


def test_a_service_that_is_away_is_not_waited_for_and_found_when_it_is_back(worker, batch):
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(scoring._Waiting, match="it does not answer"):
            scoring._score(batch, b"")
    # A subscription to the channel's state that is left behind keeps a thread.
    wait_until(lambda: threading.active_count() <= before, "nobody watches the channel")
    service = Service(worker.reward_target)

    def scored():
        try:
            return scoring._score(batch, b"")
        except scoring._Waiting:
            return None

    assert wait_until(scored, "the channel tried again") == b"scores"
    service.stop()


def test_of_a_service_that_broke_and_is_gone_its_last_words_are_told(worker, batch):
    service = Service(worker.reward_target)
    service.script = [Interrupted("reward r fails even on its own example (ZeroDivisionError)")]
    with pytest.raises(scoring._Waiting, match="ZeroDivisionError"):
        scoring._score(batch, b"")
    with pytest.raises(SalonError, match=r"1 times \(\d+ s ago .*ZeroDivisionError"):
        scoring._score(batch, b"")
    service.stop()
    scoring._service.cache_clear()
    with pytest.raises(scoring._Waiting, match=r"does not answer; \d+ s ago .*ZeroDivisionError"):
        scoring._score(batch, b"")


@pytest.mark.parametrize("kept", [b"", b"nothing", b"\xff\xfe", b"-1 x", "٣ x".encode()])
def test_last_words_of_anybody_else_are_harmless(worker, batch, kept):
    scoring._redis().set(f"salon:service:{worker.reward_target}:words", kept)
    with pytest.raises(scoring._Waiting, match="it does not answer"):
        scoring._score(batch, b"")


def test_a_service_that_takes_connections_and_says_nothing_is_given_up(worker, batch, monkeypatch):
    host, port = worker.reward_target.split(":")
    monkeypatch.setattr(
        scoring, "settings", worker.model_copy(update={"service_wait_seconds": 0.2})
    )
    with socket.create_server((host, int(port))), pytest.raises(scoring._Waiting):
        scoring._score(batch, b"")


def test_a_service_that_speaks_tls_is_named_and_looked_at_once_for_many_batches(
    worker, batch, monkeypatch, tmp_path
):
    before = threading.active_count()
    looks = []

    def look(*arguments):
        looks.append(arguments[0])
        return explain(*arguments)

    monkeypatch.setattr(scoring, "explain", look)
    credentials = server_credentials(TlsFiles(*Authority(tmp_path).issue("server")))
    service = Service(worker.reward_target, credentials)
    for _ in range(5):
        with pytest.raises(scoring._Waiting, match="the service speaks TLS and this caller does"):
            scoring._score(batch, b"")
    assert looks == [worker.reward_target]
    monkeypatch.setattr(scoring, "EXPLAINED_SECONDS", -1.0)
    with pytest.raises(scoring._Waiting):
        scoring._score(batch, b"")
    assert len(looks) == 2, "what has been found is not believed for good"
    service.stop()
    wait_until(lambda: threading.active_count() <= before, "nobody watches the channel")
