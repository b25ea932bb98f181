import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from salon.jobs import Question
from salon.jobs.lease import LeaseLost
from salon.jobs.lease import acquire as acquire_lease
from salon.jobs.record import JobState, lease_key
from salon.jobs.store import JobStore


def acquire(client, job, owner, seconds, attempts):
    return acquire_lease(client, job, owner, f"/runs/{job}", seconds, attempts)


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


@pytest.fixture
def job(store):
    return store.submit("tiny", {}).id


def test_one_of_many_rivals_gets_the_job(redis_client, job):
    with ThreadPoolExecutor(16) as pool:
        leases = list(pool.map(lambda i: acquire(redis_client, job, f"w{i}", 30, 3), range(64)))
    assert len([lease for lease in leases if lease]) == 1


def test_acquiring_marks_the_job_running(redis_client, store, job):
    before = time.time()
    lease = acquire(redis_client, job, "host:1", 30, 3)
    record = store.get(job)
    assert lease.token == record.token == 1
    assert (record.state, record.owner, record.attempts) == (JobState.RUNNING, "host:1", 1)
    assert before <= record.started <= time.time()


def test_a_renewed_lease_outlives_its_length(redis_client, store, job):
    lease = acquire(redis_client, job, "w", 60, 3)
    redis_client.pexpire(lease_key(job), 30_000)  # as after half of it
    lease.renew()
    assert redis_client.pttl(lease_key(job)) > 30_000
    assert store.abandoned() == []
    assert acquire(redis_client, job, "other", 30, 3) is None


def test_looking_at_a_lease_does_not_renew_it(redis_client, job):
    lease = acquire(redis_client, job, "w", 60, 3)
    redis_client.pexpire(lease_key(job), 30_000)
    lease.check()
    assert redis_client.pttl(lease_key(job)) <= 30_000
    redis_client.delete(lease_key(job))  # as when it expires
    with pytest.raises(LeaseLost):
        lease.check()
    lease.renew()
    lease.check()


@pytest.mark.parametrize(
    "write",
    [
        lambda lease: lease.renew(),
        lambda lease: lease.emit("iteration", {}),
        lambda lease: lease.finish(JobState.SUCCEEDED),
        lambda lease: lease.release("died", refund=False),
        lambda lease: lease.ask(Question("Well?", [1]).asked_after(1)),
        lambda lease: lease.suspend("Well?"),
    ],
)
def test_every_write_of_a_replaced_holder_is_refused(redis_client, store, job, write):
    old = acquire(redis_client, job, "old", 0.05, 3)
    time.sleep(0.1)
    new = acquire(redis_client, job, "new", 30, 3)
    assert new.token == old.token + 1
    before = (store.get(job), store.events(job))
    with pytest.raises(LeaseLost, match="token 1 is no longer the newest"):
        write(old)
    assert (store.get(job), store.events(job)) == before
    write(new)


def test_the_last_attempt_is_the_last(redis_client, store, job):
    for _ in range(2):
        acquire(redis_client, job, "w", 30, 2).release("its trainer died (SIGKILL)", refund=False)
    assert acquire(redis_client, job, "w", 30, 2) is None
    record = store.get(job)
    assert record.state is JobState.FAILED
    assert "gave up after 2 attempts" in record.reason
    assert "SIGKILL" in record.reason


def test_a_refunded_attempt_does_not_count(redis_client, store, job):
    for _ in range(5):
        acquire(redis_client, job, "w", 30, 2).release("its worker was stopped", refund=True)
    assert store.get(job).attempts == 0
    assert store.get(job).state is JobState.QUEUED
    assert acquire(redis_client, job, "w", 30, 2).token == 6


def test_a_finished_job_stays_finished(redis_client, store, job):
    lease = acquire(redis_client, job, "w", 30, 3)
    lease.finish(JobState.SUCCEEDED)
    lease.finish(JobState.SUCCEEDED)  # the answer to the first call was lost
    with pytest.raises(LeaseLost):
        lease.finish(JobState.FAILED, "too late")
    assert store.get(job).state is JobState.SUCCEEDED
    assert acquire(redis_client, job, "w", 30, 3) is None
    assert store.abandoned() == store.queued() == []


def test_a_job_cancelled_while_nobody_held_it_is_closed_on_the_next_take(redis_client, store, job):
    lease = acquire(redis_client, job, "w", 30, 3)
    store.cancel(job)
    lease.release("its worker was stopped", refund=True)
    assert acquire(redis_client, job, "w", 30, 3) is None
    assert store.get(job).state is JobState.CANCELLED


def test_a_call_repeated_after_a_lost_answer_finds_the_lease_its_own(redis_client, store, job):
    first = acquire(redis_client, job, "host:1:abc", 30, 3)
    assert acquire(redis_client, job, "host:1:abc", 30, 3) == first
    assert acquire(redis_client, job, "host:1:def", 30, 3) is None
    record = store.get(job)
    assert (record.attempts, record.token, record.folder) == (1, 1, f"/runs/{job}")
