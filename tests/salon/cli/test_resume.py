"""`salon resume` and `salon answer`, and what the other commands say of a job that waits."""

import json

import pytest
from typer.testing import CliRunner

from salon.cli.app import app
from salon.cli.stack import _left_by
from salon.errors import InvalidRequest
from salon.jobs import Question
from salon.jobs.lease import acquire
from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.broker import TRAIN_QUEUE
from tests.fixtures.stack import environment


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


@pytest.fixture
def salon(settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.stdout

    return run


@pytest.fixture
def job(store):
    return store.submit("tiny", {"iterations": 5}).id


def launched(redis_client):
    """The jobs that are in the queue of training workers."""
    messages = [json.loads(raw) for raw in redis_client.lrange(TRAIN_QUEUE, 0, -1)]
    return [message["headers"]["kwargsrepr"] for message in messages]


def suspended(redis_client, job, choices=("left", "right")):
    question = Question("Which?", [["a", "b"], "c\nd"], choices).asked_after(1)
    lease = acquire(redis_client, job, "host:1", "/runs/x", 30, 3)
    lease.ask(question)
    lease.suspend(str(question))
    return question


def test_a_job_that_failed_is_queued_again(salon, store, redis_client, job):
    acquire(redis_client, job, "host:1", "", 30, 3).finish(JobState.FAILED, "deadline")
    assert salon("resume", job[-4:]) == f"{job} is queued again\n"
    assert store.get(job).state is JobState.QUEUED
    assert [job in message for message in launched(redis_client)] == [True]


def test_a_job_that_succeeded_goes_on_for_more(salon, store, redis_client, job):
    lease = acquire(redis_client, job, "host:1", "", 30, 3)
    lease.emit("iteration", {"iteration": 5, "iterations": 5})
    lease.emit("result", {"rewards": {}, "eval_rewards": {}})
    lease.finish(JobState.SUCCEEDED)
    assert json.loads(salon("show", job, "--json"))["result"] is not None
    with pytest.raises(InvalidRequest, match=f"salon resume {job} --iterations N"):
        salon("resume", job)
    told = salon("resume", job, "--iterations", "7")
    assert told == f"{job} is queued again, for 12 iterations in all\n"
    shown = json.loads(salon("show", job, "--json"))
    assert (shown["spec"], shown["result"]) == ({"iterations": 12}, None)


def test_a_job_that_a_rule_ended_is_not_continued(salon, store, redis_client, job):
    lease = acquire(redis_client, job, "host:1", "", 30, 3)
    lease.emit("iteration", {"iteration": 3, "iterations": 5})
    lease.finish(JobState.SUCCEEDED)
    with pytest.raises(InvalidRequest, match="stopped after iteration 3 of 5 by a rule"):
        salon("resume", job, "--iterations", "7")
    assert store.get(job).state is JobState.SUCCEEDED


def test_a_question_is_shown_and_answered(salon, store, redis_client, job):
    with pytest.raises(InvalidRequest, match="is queued and asks nothing"):
        salon("answer", job)
    question = suspended(redis_client, job)
    told = salon("answer", job)
    assert told.startswith(f"Which?  (question {question.id})\n")
    assert '["a", "b"]' in told and r'"c\nd"' in told and "choices: left, right" in told
    with pytest.raises(InvalidRequest, match="got 1"):
        salon("answer", job, "left")
    assert launched(redis_client) == []
    assert salon("answer", job, "left", "right") == f"question {question.id} of {job} is answered\n"
    assert [job in message for message in launched(redis_client)] == [True]
    assert acquire(redis_client, job, "w", "", 30, 3).answers(question) == ["left", "right"]


def test_without_choices_an_answer_is_json_or_a_text(salon, redis_client, job):
    question = suspended(redis_client, job, choices=())
    salon("answer", job, '{"n": 1}', "good")
    assert acquire(redis_client, job, "w", "", 30, 3).answers(question) == [{"n": 1}, "good"]


def test_what_waits_is_in_every_list_of_jobs(salon, store, redis_client, settings, job):
    question = suspended(redis_client, job)
    says = f"asks: Which? (2 items); `salon answer {job}` answers"
    assert says in salon("jobs")
    assert says in salon("show", job)
    [record] = json.loads(salon("jobs", "--json"))
    assert (record["state"], record["question"]) == ("waiting", question.id)
    assert f"{job} is waiting: {says}\n" in salon("status", code=1)
    found = json.loads(salon("status", "--json", code=1))
    assert [each["id"] for each in found["jobs"]] == [job]
    assert [each.id for each in _left_by(settings)] == [job]
    assert salon("cancel", job) == f"{job} is cancelled\n"
    [record] = json.loads(salon("jobs", "--json"))
    assert (record["state"], record["question"]) == ("cancelled", None)


def test_who_only_answers_lacks_no_training_worker(
    salon, redis_client, monkeypatch, jpeg_service, job
):
    monkeypatch.delenv("SALON_REWARD_TARGET")
    named = dict.fromkeys(("jpeg_compressibility", "jpeg_incompressibility"), jpeg_service.target)
    monkeypatch.setenv("SALON_REWARD_TARGETS", json.dumps(named))
    assert not json.loads(salon("status", "--json", code=1))["healthy"]
    suspended(redis_client, job)
    assert json.loads(salon("status", "--json"))["healthy"]
