import threading
import time

import pytest
import redis

from salon.jobs.lease import acquire
from salon.jobs.record import JobNotFound, JobState, JobUnreadable, events_key, job_key
from salon.jobs.store import JobStore


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


def take(redis_client, job, seconds=30.0, attempts=3):
    return acquire(redis_client, job, "test", f"/runs/{job}", seconds, attempts)


def test_a_submitted_job_is_queued_with_its_spec(store):
    job = store.submit("tiny", {"iterations": 3, "rewards": [{"name": "jpeg"}]})
    assert job.id.startswith("tiny-")
    assert store.get(job.id) == job
    assert job.state is JobState.QUEUED
    assert job.spec == {"iterations": 3, "rewards": [{"name": "jpeg"}]}
    assert (job.attempts, job.token, job.started, job.finished) == (0, 0, 0, 0)


def test_an_unknown_job_is_named(store):
    with pytest.raises(JobNotFound, match=r"'nope'.*salon jobs"):
        store.get("nope")
    with pytest.raises(JobNotFound):
        store.cancel("nope")
    with pytest.raises(JobNotFound):
        store.logs("nope")


def test_jobs_are_listed_newest_first(store):
    ids = [store.submit(f"job{i}", {}).id for i in range(3)]
    assert [job.id for job in store.newest()] == ids[::-1]
    assert [job.id for job in store.newest(1)] == ids[-1:]


def test_cancelling_a_queued_job_ends_it(store, redis_client):
    job = store.submit("tiny", {}).id
    assert store.cancel(job) == "cancelled"
    assert store.get(job).state is JobState.CANCELLED
    assert store.cancel(job) == "cancelled"
    assert take(redis_client, job) is None


def test_cancelling_a_running_job_asks_its_trainer(store, redis_client):
    job = store.submit("tiny", {}).id
    lease = take(redis_client, job)
    assert lease.renew() is False
    assert store.cancel(job) == "requested"
    assert store.get(job).state is JobState.RUNNING
    assert lease.renew() is True


def test_cancelling_a_job_whose_trainer_vanished_ends_it(store, redis_client):
    job = store.submit("tiny", {}).id
    take(redis_client, job, seconds=0.05)
    time.sleep(0.1)
    assert store.cancel(job) == "cancelled"


def test_abandoned_jobs_are_those_without_a_lease(store, redis_client):
    held, lost, queued = (store.submit(name, {}).id for name in ("held", "lost", "queued"))
    take(redis_client, held)
    take(redis_client, lost, seconds=0.05)
    time.sleep(0.1)
    assert store.abandoned() == [lost]
    assert store.queued() == [queued]


def test_following_a_job_gives_every_event_and_ends_with_it(store, redis_client):
    job = store.submit("tiny", {}).id
    lease = take(redis_client, job)
    seen = []

    def follow():
        seen.extend(event for event in store.follow(job, 0.1) if event)

    thread = threading.Thread(target=follow)
    thread.start()
    for i in range(20):
        lease.emit("iteration", {"iteration": i})
    lease.finish(JobState.SUCCEEDED)
    thread.join(60)
    assert not thread.is_alive()
    states = [event.data["state"] for event in seen if event.kind == "state"]
    assert states == ["queued", "running", "succeeded"]
    assert [event.data["iteration"] for event in seen if event.kind == "iteration"] == list(
        range(20)
    )


def test_log_lines_are_kept_in_order(store):
    job = store.submit("tiny", {}).id
    for line in ("one", "two ü", "three"):
        store.add_log(job, line)
    assert store.logs(job) == ["one", "two ü", "three"]


DEEP = '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}"


def test_a_record_that_is_nested_too_deeply_hides_no_other(store, redis_client):
    deep, whole = (store.submit(name, {}).id for name in ("deep", "whole"))
    redis_client.hset(job_key(deep), "spec", DEEP)
    with pytest.raises(JobUnreadable, match=f"delete the key {job_key(deep)}, or repair it"):
        store.get(deep)
    assert [job.id for job in store.newest()] == store.queued() == [whole]


def test_an_event_that_is_nested_too_deeply_is_said_in_its_place(store, redis_client):
    job = store.submit("deep", {}).id
    redis_client.xadd(events_key(job), {"kind": "iteration", "data": DEEP})
    _, event = store.events(job)
    assert event.kind == "warning"
    assert "of the job's history cannot be read: RecursionError" in event.data["text"]


def test_a_user_who_may_not_read_a_record_is_not_told_to_delete_it(store, redis_client):
    job = store.submit("tiny", {}).id
    redis_client.acl_setuser(
        "limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-hgetall"]
    )
    try:
        port = redis_client.connection_pool.connection_kwargs["port"]
        limited = JobStore(redis.Redis(port=port, username="limited", password="any"))
        for read in (lambda: limited.get(job), limited.newest):
            with pytest.raises(redis.exceptions.NoPermissionError, match="hgetall"):
                read()
    finally:
        redis_client.acl_deluser("limited")
