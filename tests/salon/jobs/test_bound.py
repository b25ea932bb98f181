"""What `salon run` submitted is over when its stack is."""

import stat
import threading

import pytest
import structlog

from salon.jobs.bound import REASON, bound_key, settle_bound_jobs
from salon.jobs.lease import LeaseLost, acquire
from salon.jobs.record import JobState, job_key
from salon.jobs.store import JobStore


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


def test_a_queued_job_is_cancelled_and_others_are_left_alone(store, settings):
    bound = store.submit("mine", {}, bound_key(settings)).id
    other = store.submit("other", {}).id
    elsewhere = settings.model_copy(update={"state_dir": settings.state_dir / "other"})
    beside = store.submit("beside", {}, bound_key(elsewhere)).id
    settle_bound_jobs(settings)
    assert (store.get(bound).state, store.get(bound).reason) == (JobState.CANCELLED, REASON)
    assert store.latest(bound).data == {"state": "cancelled", "reason": REASON}
    assert [store.get(job).state for job in (other, beside)] == [JobState.QUEUED] * 2


def test_they_are_known_under_another_name_of_the_host_and_of_the_folder(
    settings, monkeypatch, tmp_path
):
    key = bound_key(settings)
    assert stat.S_IMODE((settings.state_dir / "stack.id").stat().st_mode) == 0o600
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    moved = settings.state_dir.rename(tmp_path / "moved")
    assert bound_key(settings.model_copy(update={"state_dir": moved})) == key
    assert bound_key(settings) != key


def test_a_running_job_is_waited_for(store, settings, redis_client):
    job = store.submit("mine", {}, bound_key(settings)).id
    lease = acquire(redis_client, job, "host:1", "", 30, 3)
    asked = threading.Event()

    def trainer():
        while not lease.renew():
            pass
        asked.set()
        lease.finish(JobState.CANCELLED, "cancelled by the user")

    thread = threading.Thread(target=trainer)
    thread.start()
    settle_bound_jobs(settings, wait_seconds=30)
    assert (store.get(job).state, store.get(job).reason) == (JobState.CANCELLED, REASON)
    assert store.latest(job).data == {"state": "cancelled", "reason": REASON}
    assert asked.is_set()
    thread.join()


def test_what_the_user_cancelled_before_stays_cancelled_by_the_user(store, settings, redis_client):
    job = store.submit("mine", {}, bound_key(settings)).id
    lease = acquire(redis_client, job, "host:1", "", 30, 3)
    store.cancel(job)
    settle_bound_jobs(settings)
    lease.finish(JobState.CANCELLED, "the trainer's word")
    assert store.get(job).reason == "cancelled by the user"


def test_a_job_whose_trainer_does_not_stop_in_time_is_not_run_again(store, settings, redis_client):
    job = store.submit("mine", {}, bound_key(settings)).id
    lease = acquire(redis_client, job, "host:1", "", 30, 3)
    settle_bound_jobs(settings, wait_seconds=0)
    lease.release("its worker was stopped", refund=True)
    assert acquire(redis_client, job, "host:2", "", 30, 3) is None
    assert (store.get(job).state, store.get(job).reason) == (JobState.CANCELLED, REASON)
    with pytest.raises(LeaseLost):
        lease.renew()


def test_a_job_whose_trainer_is_killed_is_settled_when_its_lease_has_expired(
    store, settings, redis_client
):
    job = store.submit("mine", {}, bound_key(settings)).id
    acquire(redis_client, job, "host:1", "", 0.5, 3)
    settle_bound_jobs(settings, wait_seconds=30)
    assert (store.get(job).state, store.get(job).reason) == (JobState.CANCELLED, REASON)
    assert redis_client.exists(bound_key(settings)) == 0


def test_a_job_that_cannot_be_settled_keeps_no_other_from_it(store, settings, redis_client):
    key = bound_key(settings)
    broken, whole = ([store.submit("mine", {}, key).id for _ in range(5)] for _ in range(2))
    for job in broken:
        redis_client.delete(job_key(job))
        redis_client.rpush(job_key(job), "of another type")
    settle_bound_jobs(settings)
    assert {store.get(job).state for job in whole} == {JobState.CANCELLED}
    assert redis_client.smembers(key) == {job.encode() for job in broken}
    redis_client.delete(*map(job_key, broken))
    settle_bound_jobs(settings)
    assert not redis_client.exists(key)


def test_a_damaged_id_of_the_stack_is_made_anew(settings):
    key = bound_key(settings)
    (settings.state_dir / "stack.id").write_bytes(b"\xff\xfe")
    assert bound_key(settings) not in (key, "salon:bound:")
    assert bound_key(settings) == bound_key(settings)


def test_what_is_over_stays_as_it_ended(store, settings, redis_client):
    job = store.submit("mine", {}, bound_key(settings)).id
    acquire(redis_client, job, "host:1", "", 30, 3).finish(JobState.SUCCEEDED)
    settle_bound_jobs(settings)
    assert store.get(job).state is JobState.SUCCEEDED
    assert redis_client.exists(bound_key(settings)) == 0


def test_without_redis_that_is_logged_and_no_error(settings):
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with structlog.testing.capture_logs() as logged:
        settle_bound_jobs(away)
    [entry] = logged
    assert entry["event"] == "cannot settle the jobs of this stack"
    assert "127.0.0.1:1" in entry["reason"]
