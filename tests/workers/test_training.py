"""Launching: what keeps a trainer from starting reaches the job; its lease is kept meanwhile."""

import logging
import sys

import pytest

from salon.jobs.lease import acquire
from salon.jobs.record import (
    ACTIVE_KEY,
    INDEX_KEY,
    JobNotFound,
    JobState,
    check_id,
    job_key,
    lease_key,
)
from salon.jobs.store import JobStore
from salon.queue.connection import connect
from tests.fixtures.stack import wait_until
from workers import attempt, training


@pytest.fixture
def worker(settings, monkeypatch):
    """This process as a training worker with the test's settings; its Redis."""
    client = connect(settings.redis_url)
    monkeypatch.setattr(training, "settings", settings)
    monkeypatch.setattr(training, "_redis", lambda: client)
    monkeypatch.setattr(training, "send_launch", lambda _app, job: client.rpush("sent", job))
    return client


@pytest.fixture
def store(worker):
    return JobStore(worker)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Lets a script stand in for the trainer's Python."""

    def use(text):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))
        return path

    return use


def test_a_trainer_that_cannot_be_started_leaves_its_reason_with_the_job(
    store, worker, monkeypatch
):
    job = store.submit("tiny", {}).id
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    training.launch(job)
    record = store.get(job)
    assert (record.state, record.attempts) == (JobState.QUEUED, 1)
    assert not worker.exists(lease_key(job))
    reason = store.events(job)[-1].data["reason"]
    assert "could not be started: FileNotFoundError" in reason
    assert "/nowhere/python" in reason
    assert store.logs(job) == [reason]
    assert worker.lrange("sent", 0, -1) == [], "the next try is not at once"
    training.launch(job)
    training.launch(job)
    training.launch(job)
    record = store.get(job)
    assert record.state is JobState.FAILED
    assert record.reason == f"gave up after 3 attempts; the last ended thus: {reason}"


@pytest.mark.parametrize("wanted", [0, -1, 10**9, "2", None, [2], 1.5])
def test_a_record_cannot_start_any_number_of_processes(store, program, tmp_path, wanted):
    program(f"touch {tmp_path}/started")
    job = store.submit("tiny", {"num_processes": wanted}).id
    training.launch(job)
    assert "num_processes is" in store.logs(job)[0]
    assert not (tmp_path / "started").exists()
    assert store.get(job).state is JobState.QUEUED


def test_where_a_rank_cannot_be_started_those_before_it_are_ended(store, program, monkeypatch):
    program("exec sleep 60")
    started = []
    real = attempt.subprocess.Popen

    def once(*args, **options):
        if started:
            raise OSError(12, "Cannot allocate memory")
        started.append(real(*args, **options))
        return started[0]

    monkeypatch.setattr(attempt.subprocess, "Popen", once)
    job = store.submit("tiny", {"num_processes": 2}).id
    training.launch(job)
    assert started[0].poll() is not None
    assert "Cannot allocate memory" in store.logs(job)[0]


def test_the_lease_is_kept_for_a_trainer_that_starts_slowly(
    store, worker, settings, program, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "settings", settings.model_copy(update={"lease_seconds": 0.9}))
    monkeypatch.setattr(attempt, "POLL_SECONDS", 0.05)
    job = store.submit("tiny", {}).id
    real = f"{sys.executable} -c"
    look = (
        "import redis, time; "
        f"client = redis.Redis.from_url('{settings.redis_url}'); "
        "time.sleep(2.5); "
        f"print(client.exists('{lease_key(job)}'))"
    )
    program(f'{real} "{look}" > {tmp_path}/seen')
    training.launch(job)
    assert (tmp_path / "seen").read_text() == "1\n"
    assert store.events(job)[-1].data["reason"] == "its trainer died (exit code 0)"
    assert worker.lrange("sent", 0, -1) == [job.encode()]


def test_a_job_that_is_deleted_while_it_runs_is_not_queued_again(store, worker, settings, program):
    job = store.submit("tiny", {}).id
    delete = f"redis.Redis.from_url('{settings.redis_url}').delete('{job_key(job)}')"
    program(f'{sys.executable} -c "import redis; {delete}"')
    training.launch(job)
    assert worker.lrange("sent", 0, -1) == []


def test_a_trainer_that_has_beaten_keeps_its_lease_alone(store, worker):
    job = store.submit("tiny", {}).id
    lease = acquire(worker, job, "w", "folder", 30, 3)
    assert lease.hold() is False
    lease.renew()
    worker.pexpire(lease_key(job), 5000)
    assert lease.hold() is True
    assert worker.pttl(lease_key(job)) <= 5000, "a dead trainer's lease must run out"


def test_a_trainer_that_never_begins_is_ended(store, program, monkeypatch):
    program("exec sleep 60")
    monkeypatch.setattr(attempt, "START_SECONDS", 0.2)
    monkeypatch.setattr(attempt, "POLL_SECONDS", 0.05)
    job = store.submit("tiny", {}).id
    training.launch(job)
    assert "did not begin to work" in store.logs(job)[0]


HOSTILE = [
    "../../victim",
    "..",
    "",
    "/etc",
    "a/../../b-000000",
    "a-00000\n0",
    "A-000000",
    "x" * 999,
]


@pytest.mark.parametrize("job", [*HOSTILE, "tiny-000000\n", None, 7, ["tiny-000000"]])
def test_what_can_be_no_id_names_no_folder_and_no_key(store, worker, settings, job):
    with pytest.raises(JobNotFound):
        check_id(job)
    before = sorted(worker.keys())
    training.launch(job)
    assert sorted(worker.keys()) == before
    assert not settings.runs_dir.exists()
    for use in (
        store.get,
        store.cancel,
        store.logs,
        store.events,
        lambda job: store.add_log(job, "x"),
    ):
        with pytest.raises(JobNotFound):
            use(job)


def _foreign(worker):
    """Entries that no Salon wrote, each under a name of its own."""
    worker.set(job_key("text-000001"), "no hash")
    worker.hset(job_key("missing-000002"), mapping={"state": "queued"})
    good = {"name": "n", "spec": "{}", "state": "queued", "submitted": "1"}
    bad = {
        "state-000003": {"state": "asleep"},
        "spec-000004": {"spec": "{"},
        "list-000005": {"spec": "[1]"},
        "time-000006": {"submitted": "nan"},
        "count-000007": {"attempts": "many"},
        "bytes-000008": {"reason": b"\xff\xfe"},
    }
    for job, change in bad.items():
        worker.hset(job_key(job), mapping={**good, **change})
    names = ["text-000001", "missing-000002", *bad, "gone-000009", "../../victim", b"\xff\xfe"]
    for name in names:
        worker.sadd(ACTIVE_KEY, name)
        worker.zadd(INDEX_KEY, {name: 9e9})
    return [name for name in names if isinstance(name, str)]


def test_one_entry_that_is_no_job_hides_no_other(store, worker, caplog):
    names = _foreign(worker)
    job = store.submit("tiny", {}).id
    lost = store.submit("lost", {}).id
    acquire(worker, lost, "w", "folder", 30, 3)
    worker.delete(lease_key(lost))
    with caplog.at_level(logging.WARNING):
        assert store.queued() == [job]
        assert store.abandoned() == [lost]
        assert [found.id for found in store.newest()] == [lost, job]
    told = [record.getMessage() for record in caplog.records]
    for name in names:
        assert len([line for line in told if name in line]) == 1, f"{name} is named, once"
    for name in names:
        training.launch(name)
    assert not worker.exists(lease_key("state-000003"))


def test_a_queue_of_anything_stops_no_worker_and_no_job(stack):
    """As somebody who may write to Redis would have it."""
    store = JobStore(stack.redis)
    _foreign(stack.redis)
    for kwargs in ({"job": "../../victim"}, {"job": ["x"]}, {"name": 1}, {}):
        stack.app.send_task("salon.launch", kwargs=kwargs, queue="train")
    stack.app.send_task("os.system", args=["true"], queue="train")
    for raw in (b"no json", b"\xff\xfe", b"[]", b"7", b"{}", b'{"body": 1}'):
        stack.redis.rpush("train", raw)
        stack.redis.hset("unacked", raw, raw)  # as if a worker that is gone had been at it
        stack.redis.zadd("unacked_index", {raw: 0})
    stack.start("training")
    job = store.submit("tiny", {"num_processes": 0}).id  # nobody sends its launch
    wait_until(lambda: store.get(job).state is JobState.FAILED, "it was relaunched, time and again")
    assert "num_processes is 0" in store.get(job).reason
    assert stack.redis.llen("train") == 0
    assert stack.redis.hlen("unacked") == stack.redis.zcard("unacked_index") == 0
    assert not (stack.settings.runs_dir.parent.parent / "victim").exists()
    # With an exception in its loop, Celery ends, and the supervisor would start it again.
    assert stack.log("training").count("celery@") == 0
    assert stack.log("training").count(" ready.") == 1, "the worker started once"
