"""One try of one batch, at a service that answers as the test says."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from salon.client.diagnosis import explain
from salon.errors import (
    Interrupted,
    Overloaded,
    SalonError,
    ServiceUnavailable,
    to_status,
)
from salon.queue.blobs import Reference
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
    redis = connect(settings.redis_url)
    monkeypatch.setattr(scoring, "_redis", lambda: redis)
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
    "answer", [grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded("larger than the limit")], ids=repr
)
def test_where_waiting_does_not_help_the_batch_fails_at_once(service, batch, answer):
    service.script = [answer]
    with pytest.raises(SalonError, match=r"refused a batch: RESOURCE_EXHAUSTED: (bare|larger)"):
        scoring._score(batch, b"")


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
