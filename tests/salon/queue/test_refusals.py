"""What Redis refuses for a while is waited for, in commands, scripts, transactions and queues."""

import signal
import threading

import pytest
import redis
from kombu.exceptions import OperationalError

from salon.errors import InvalidRequest, Overloaded
from salon.jobs.lease import acquire
from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue import refusals
from salon.queue.blobs import BlobStore
from salon.queue.broker import _send, create_app, send_launch
from salon.queue.connection import check_keeps_keys, connect, connect_once
from salon.queue.replies import Reply, ReplyKind, ReplyStream
from salon.settings import Settings
from tests.fixtures.redis import RedisServer
from tests.fixtures.refusing import KINDS, Refusing


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = RedisServer(tmp_path_factory.mktemp("redis"))
    yield made
    made.stop()


@pytest.fixture
def refusing(server):
    made = Refusing(server.url)
    made.admin.flushall()
    yield made
    made.end()


def _job(client):
    store = JobStore(client)
    job = store.submit("tiny", {"seed": 1})
    lease = acquire(client, job.id, "w", "folder", 30, 3)
    lease.renew()
    lease.emit("stage", {"text": "one"})
    lease.release("stopped", refund=True)
    assert store.cancel(job.id) == "cancelled"
    assert [event.kind for event in store.events(job.id)] == [
        *["state"] * 2,
        "stage",
        *["state"] * 2,
    ]
    return store.get(job.id).state is JobState.CANCELLED


def _blob(client):
    blobs = BlobStore(client, 60)
    return blobs.get(blobs.put(b"x" * 1000)) == b"x" * 1000


def _reply(client):
    stream = ReplyStream(client, "a" * 16, 60)
    stream.send(Reply("b", ReplyKind.SCORED, b"body"))
    return [reply.body for reply in stream.read(0.01)] == [b"body"]


def _queue(client, url):
    with create_app(Settings(redis_url=url)) as app:
        send_launch(app, "tiny-000001")
    return client.llen("train") == 1


@pytest.mark.parametrize("what", ["job", "blob", "reply", "queue"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_waited_for(server, refusing, kind, what):
    client = connect(server.url)
    refusing.begin(kind)
    with pytest.raises(redis.ConnectionError, match=f"Redis refuses for now: {kind} "):
        connect_once(server.url, 5.0).set("a", "b")
    ending = threading.Timer(0.4, refusing.end)
    ending.start()
    done = _queue(client, server.url) if what == "queue" else globals()[f"_{what}"](client)
    ending.join()
    assert done


def test_a_transaction_is_refused_as_a_whole(server, refusing):
    refusing.begin("OOM")
    pipeline = connect_once(server.url, 5.0).pipeline(transaction=True)
    pipeline.set("a", "1")
    pipeline.delete("a")
    with pytest.raises(refusals.Refused, match="OOM"):
        pipeline.execute()


@pytest.mark.parametrize(
    "message",
    [
        "OOM command not allowed when used memory > 'maxmemory'. script: 5f, on @user_script:3.",
        "Error running script (call to f_5f): @user_script:3: -OOM command not allowed when used",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script.",
    ],
)
def test_an_answer_without_a_class_of_its_own_is_known_by_its_words(message):
    assert refusals.refusal(redis.ResponseError(message)) is not None


@pytest.mark.parametrize(
    "message", ["WRONGTYPE Operation against a key", "unknown command", "OOMPH", "NOPERM no"]
)
def test_what_does_not_pass_is_raised_as_it_is(message):
    assert refusals.refusal(redis.ResponseError(message)) is None


def test_the_wait_has_an_end_and_the_error_says_what_it_was(server, refusing, monkeypatch):
    monkeypatch.setattr("salon.queue.connection.Patience", lambda **_: refusals.Patience(0.2))
    refusing.begin("OOM")
    with pytest.raises(Overloaded, match=r"no room for a blob of 9 bytes.*maxmemory"):
        BlobStore(connect(server.url), 60).put(b"x" * 9)
    refusing.end()
    refusing.begin("READONLY")
    with pytest.raises(redis.ConnectionError, match="READONLY"):
        BlobStore(connect(server.url), 60).put(b"x" * 9)


class _Clock:
    """Passes by what is waited and tried alone."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    "error", [redis.ConnectionError(), redis.TimeoutError(), ConnectionRefusedError(), OSError()]
)
def test_what_any_release_of_redis_py_says_of_a_lost_connection_is_waited_for(error):
    outcomes = iter([error, error])

    def do():
        for outcome in outcomes:
            raise outcome
        return "done"

    assert refusals.patiently(do) == "done"


@pytest.mark.parametrize("seconds", [0.0, 7.0])
def test_the_wait_is_bounded_however_long_one_try_takes(monkeypatch, seconds):
    clock = _Clock()
    monkeypatch.setattr(refusals, "time", clock)
    monkeypatch.setattr("redis.retry.sleep", clock.sleep)

    def away():
        clock.sleep(seconds)
        raise OperationalError("away")

    with pytest.raises(OperationalError, match="away"):
        refusals.patiently(away)
    assert 1060 <= clock.now <= 1060 + seconds + 1


def test_a_wait_within_a_wait_makes_it_no_longer(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(refusals, "time", clock)
    monkeypatch.setattr("redis.retry.sleep", clock.sleep)
    patience = refusals.Patience()

    def away():
        raise redis.ConnectionError("away")

    for _ in range(2):
        started = clock.now
        with pytest.raises(redis.ConnectionError, match="away"):
            patience.call_with_retry(
                lambda: patience.call_with_retry(away, lambda _: None), lambda _: None
            )
        assert 60 <= clock.now - started <= 61


def test_what_is_waited_for_is_said_once_until_it_is_something_else(monkeypatch, caplog):
    clock = _Clock()
    monkeypatch.setattr(refusals, "time", clock)
    monkeypatch.setattr("redis.retry.sleep", clock.sleep)
    patience = refusals.Patience(way_out="; start one")
    full = refusals.Refused("OOM", "full")
    errors = [redis.ConnectionError("closed"), *[redis.ConnectionError("no")] * 20, *[full] * 20]

    def away():
        if errors:
            raise errors.pop(0)
        return "there"

    assert patience.call_with_retry(away, lambda _: None) == "there"
    lost = "waiting for Redis: closed; start one"
    assert caplog.messages == [lost, "waiting for Redis: Redis refuses for now: OOM full"]
    clock.sleep(60)
    errors.append(redis.ConnectionError("closed"))
    patience.call_with_retry(away, lambda _: None)
    assert caplog.messages[2:] == [lost]


@pytest.mark.parametrize("further", [[], ["is_retryable"], ["is_retryable", "with_failure_count"]])
def test_the_arguments_of_every_version_of_redis_py_are_passed_on(monkeypatch, further):
    told = []

    def call_with_retry(self, do, fail, **options):
        assert [*options] == further
        fail(redis.ConnectionError("away"), *([1] if "with_failure_count" in further else []))
        return do()

    monkeypatch.setattr("redis.retry.Retry.call_with_retry", call_with_retry)
    patience = refusals.Patience()
    options = dict.fromkeys(further)
    assert patience.call_with_retry(lambda: "done", lambda *a: told.append(a), **options) == "done"
    assert len(told[0]) == (2 if "with_failure_count" in further else 1)


def test_one_try_of_a_send_waits_for_nothing(monkeypatch):
    def sleep(seconds):
        raise AssertionError(f"kombu waits {seconds} s")

    monkeypatch.setattr("kombu.utils.functional.sleep", sleep)
    away = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))
    with away as app, pytest.raises(OperationalError, match="refused"):
        _send(app, "t", {}, "train", retry=False)


def test_a_send_to_a_redis_that_says_nothing_has_an_end(own_redis, monkeypatch):
    monkeypatch.setattr("salon.queue.broker.SOCKET_SECONDS", 0.5)
    with create_app(Settings(redis_url=own_redis.url)) as app:
        send_launch(app, "tiny-000001")
        own_redis.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(OperationalError, match=r"[Tt]imeout|timed out"):
                _send(app, "t", {}, "train", retry=False)
        finally:
            own_redis.process.send_signal(signal.SIGCONT)


def test_a_send_that_must_not_wait_says_so_at_once(server, refusing):
    refusing.begin("OOM")
    with create_app(Settings(redis_url=server.url)) as app, pytest.raises(OperationalError):
        _send(app, "t", {}, "train", retry=False)


def test_a_full_redis_keeps_a_lease_alive(server, refusing):
    client = connect_once(server.url, 5.0)
    job = JobStore(client).submit("tiny", {}).id
    lease = acquire(client, job, "w", "folder", 30, 3)
    refusing.admin.pexpire(f"salon:job:{job}:lease", 2000)
    refusing.begin("OOM")
    lease.renew()
    assert lease.hold() is True
    assert refusing.admin.pttl(f"salon:job:{job}:lease") > 20_000


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_forgets_takes_no_job(server, refusing, policy):
    store = JobStore(connect_once(server.url, 5.0))
    refusing.admin.config_set("maxmemory-policy", policy)
    try:
        store.submit("unlimited", {})
        refusing.admin.config_set("maxmemory", "100mb")
        with pytest.raises(InvalidRequest, match=f"maxmemory-policy {policy}.*noeviction"):
            store.submit("tiny", {})
        assert [job.name for job in store.newest()] == ["unlimited"]
    finally:
        refusing.admin.config_set("maxmemory", "0")
        refusing.admin.config_set("maxmemory-policy", "noeviction")
    check_keeps_keys(refusing.admin)
