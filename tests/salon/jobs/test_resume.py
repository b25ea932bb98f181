"""A job that is over goes on where it was, as often and as far as a person wants."""

import pytest

from salon.errors import InvalidRequest
from salon.jobs import Question
from salon.jobs.lease import LeaseLost, acquire
from salon.jobs.record import ACTIVE_KEY, INDEX_KEY, JobNotFound, JobState, job_key
from salon.jobs.store import JobStore

SPEC = {"name": "tiny", "iterations": 5, "seed": 2**60 + 1, "rate": 1e-05, "notes": [], "é": {}}


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


@pytest.fixture
def job(store):
    return store.submit("tiny", SPEC).id


@pytest.fixture
def take(redis_client, job):
    return lambda attempts=3: acquire(redis_client, job, "w", f"/runs/{job}", 30, attempts)


def test_one_that_used_up_its_attempts_has_all_of_them_again(store, job, take):
    for _ in range(2):
        take(2).release("its trainer died", refund=False)
    assert take(2) is None
    assert store.get(job).state is JobState.FAILED
    resumed = store.resume(job)
    assert (resumed.state, resumed.reason, resumed.attempts) == (JobState.QUEUED, "", 0)
    assert (resumed.finished, resumed.spec) == (0, SPEC)
    assert store.queued() == [job]
    assert take(1).token == 3
    assert store.events(job)[-2].data == {"state": "queued", "reason": "resumed"}


def test_one_that_was_cancelled_is_not_cancelled_again(store, job, take):
    lease = take()
    store.cancel(job)
    lease.finish(JobState.CANCELLED, "cancelled by the user")
    assert not store.resume(job).cancel_requested
    with pytest.raises(LeaseLost):
        lease.renew()
    assert take().renew() is False


def test_it_goes_on_for_more_iterations_and_nothing_else_of_its_spec_changes(store, job, take):
    take().finish(JobState.FAILED, "deadline")
    assert store.resume(job, 3).spec == SPEC | {"iterations": 8}
    take().finish(JobState.SUCCEEDED)
    assert store.resume(job, 2).spec == SPEC | {"iterations": 10}
    assert store.events(job)[-1].data["reason"] == "resumed, for 2 iterations more"


def test_what_has_nothing_left_to_do_says_so(store, job, take):
    take().finish(JobState.SUCCEEDED)
    with pytest.raises(InvalidRequest, match=f"salon resume {job} --iterations N"):
        store.resume(job)
    assert store.get(job).state is JobState.SUCCEEDED


def test_what_is_not_over_is_not_resumed(store, job, take):
    with pytest.raises(InvalidRequest, match="is queued: only what is over"):
        store.resume(job)
    lease = take()
    with pytest.raises(InvalidRequest, match="is running: only what is over"):
        store.resume(job, 3)
    question = Question("Well?", [1]).asked_after(1)
    lease.ask(question)
    lease.suspend(str(question))
    with pytest.raises(InvalidRequest, match="is waiting: only what is over"):
        store.resume(job)
    assert store.get(job).spec == SPEC
    with pytest.raises(JobNotFound):
        store.resume("tiny-000000")


@pytest.mark.parametrize("iterations", [None, "5", 0, [5]])
def test_a_spec_without_a_number_of_iterations_is_not_continued(store, take, iterations):
    job = store.submit("odd", {"iterations": iterations}).id
    store.cancel(job)
    with pytest.raises(InvalidRequest, match="whole numbers from 1"):
        store.resume(job, 3)
    assert store.resume(job).state is JobState.QUEUED


def test_records_of_an_older_release_are_read_and_resumed(store, redis_client):
    """As they lie in a Redis that was written before jobs could wait."""
    old = {
        "name": "tiny",
        "spec": '{"name": "tiny", "iterations": 5}',
        "submitted": "1795869419.0385041",
        "token": "3",
        "attempts": "3",
        "owner": "host:5384:bf3ace",
        "folder": "/data/runs/tiny",
        "started": "1795869419.0515568",
        "beat": "3",
    }
    ends = {
        "tiny-000001": {"state": "queued"},
        "tiny-000002": {"state": "running"},
        "tiny-000003": {"state": "succeeded", "reason": "", "finished": "1795869427.1"},
        "tiny-000004": {"state": "failed", "reason": "gave up", "finished": "1795869427.1"},
        "tiny-000005": {
            "state": "cancelled",
            "reason": "cancelled by the user",
            "finished": "1795869427.1",
            "cancel": "1",
            "interrupted": "its worker was stopped",
        },
    }
    for job, end in ends.items():
        redis_client.hset(job_key(job), mapping=old | end)
        redis_client.zadd(INDEX_KEY, {job: 1795869419.0385041})
    redis_client.sadd(ACTIVE_KEY, "tiny-000001", "tiny-000002")
    assert {job.id: job.state.value for job in store.newest()} == {
        job: end["state"] for job, end in ends.items()
    }
    assert sorted(job.id for job in store.unfinished()) == ["tiny-000001", "tiny-000002"]
    assert all(store.question(job) is None for job in ends)
    for job in ("tiny-000004", "tiny-000005"):
        resumed = store.resume(job, 5)
        assert (resumed.state, resumed.attempts, resumed.token) == (JobState.QUEUED, 0, 3)
        assert (resumed.reason, resumed.finished, resumed.cancel_requested) == ("", 0, False)
        assert resumed.spec == {"name": "tiny", "iterations": 10}
        assert acquire(redis_client, job, "w", "", 30, 3).token == 4
