"""A job that waits for a person: nothing runs it, nothing is lost, and an answer wakes it."""

import json
import math
import threading
from dataclasses import replace

import pytest

from salon.errors import InvalidRequest
from salon.jobs import Question
from salon.jobs.bound import bound_key, settle_bound_jobs
from salon.jobs.lease import LeaseLost, acquire
from salon.jobs.record import (
    JobNotFound,
    JobState,
    JobUnreadable,
    answers_key,
    job_key,
    lease_key,
    question_key,
)
from salon.jobs.store import JobStore

QUESTION = Question("Which is better?", [["a", "b"], ["c", "d"]], ["left", "right"])
FIRST, SECOND = QUESTION.asked_after(1), QUESTION.asked_after(2)


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


@pytest.fixture
def job(store):
    return store.submit("tiny", {"iterations": 5}).id


@pytest.fixture
def take(redis_client, job):
    return lambda attempts=3: acquire(redis_client, job, "w", f"/runs/{job}", 30, attempts)


def suspend(lease, question=FIRST):
    lease.ask(question)
    return lease.suspend(str(question))


def test_a_question_has_the_same_id_whenever_it_is_asked_and_another_has_another():
    again = Question("Which is better?", (("a", "b"), ("c", "d")), ("left", "right"))
    assert again.asked_after(1).id == FIRST.id
    others = [SECOND, replace(QUESTION, items=[["a", "b"], ["c", "e"]]).asked_after(1)]
    assert len({FIRST.id, *(other.id for other in others)}) == 3
    assert Question.from_values(json.loads(FIRST.to_json())) == FIRST


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": ""}, "one line"),
        ({"text": "two\nlines"}, "one line"),
        ({"items": []}, "no item"),
        ({"choices": [1, 2]}, r"a list of texts, got \[1, 2\]"),
        ({"choices": "yes"}, "a list of texts, got 'yes'"),
        ({"items": [object()]}, "cannot be written as JSON"),
        ({"items": [math.nan]}, "cannot be written as JSON"),
        ({"items": ["x" * 2**20]}, "put what is large into files"),
    ],
)
def test_what_cannot_be_asked_is_named(change, words):
    with pytest.raises(InvalidRequest, match=words):
        replace(QUESTION, **change).asked_after(1)


def test_a_job_that_waits_has_no_lease_no_attempt_and_nobody_takes_it(
    store, redis_client, job, take
):
    assert suspend(take()) is JobState.WAITING
    record = store.get(job)
    assert (record.state, record.attempts, record.question) == (JobState.WAITING, 0, FIRST.id)
    assert not record.state.final
    assert record.reason == (f"asks: Which is better? (2 items); `salon answer {job}` answers")
    assert not redis_client.exists(lease_key(job))
    assert store.abandoned() == store.queued() == store.active() == []
    assert [found.id for found in store.unfinished()] == [job]
    assert take() is None
    assert store.get(job) == record
    keys = [job_key(job), question_key(job), "salon:jobs:waiting"]
    assert [redis_client.ttl(key) for key in keys] == [-1] * 3, "it waits for as long as it takes"
    assert store.question(job) == FIRST


def test_an_answer_wakes_it(store, job, take):
    suspend(take())
    assert store.answer(job, FIRST.id, ["left", "right"]) is JobState.QUEUED
    record = store.get(job)
    assert (record.state, record.reason) == (JobState.QUEUED, "")
    assert store.queued() == [found.id for found in store.unfinished()] == [job]
    assert store.question(job) is None
    lease = take(attempts=1)
    assert lease.token == 2
    assert lease.answers(FIRST) == ["left", "right"]
    assert lease.answers(SECOND) is None
    lease.finish(JobState.SUCCEEDED)
    assert store.unfinished() == []


def test_however_often_it_asks_its_attempts_do_not_run_out(store, job, take):
    take().release("its trainer died", refund=False)
    for number in range(5):
        question = QUESTION.asked_after(number)
        suspend(take(attempts=2), question)
        assert store.get(job).attempts == 1, "the one that failed"
        store.answer(job, question.id, ["left", "left"])
    take(attempts=2).finish(JobState.SUCCEEDED)


def test_an_answer_that_comes_before_it_waits_is_not_lost(store, redis_client, job, take):
    lease = take()
    lease.ask(FIRST)
    assert store.question(job) == FIRST
    assert store.answer(job, FIRST.id, ["left", "right"]) is JobState.RUNNING
    assert store.question(job) is None
    assert lease.suspend(str(FIRST)) is JobState.QUEUED
    assert (store.queued(), store.get(job).attempts) == ([job], 0)
    assert not redis_client.exists(lease_key(job))


def test_asked_again_after_a_crash_it_meets_its_answer(store, redis_client, job, take):
    take().ask(FIRST)
    redis_client.delete(lease_key(job))  # as when it expires
    assert store.answer(job, FIRST.id, ["left", "right"]) is JobState.RUNNING
    lease = take()
    lease.ask(FIRST)
    assert lease.answers(FIRST) == ["left", "right"]
    told = [event for event in store.events(job) if event.kind == "question"]
    assert len(told) == 1, "people are asked once"


def test_one_that_goes_back_to_an_older_question_meets_that_ones_answer(store, job, take):
    for question in (FIRST, SECOND):
        suspend(take(), question)
        store.answer(job, question.id, ["left", "right"])
    lease = take()
    lease.ask(FIRST)
    assert lease.answers(FIRST) == ["left", "right"]


def test_the_same_answers_twice_are_as_good_as_once_and_others_are_refused(store, job, take):
    suspend(take())
    store.answer(job, FIRST.id, ["left", "right"])
    assert store.answer(job, FIRST.id, ["left", "right"]) is JobState.QUEUED
    with pytest.raises(InvalidRequest, match=r"answered otherwise before.*left"):
        store.answer(job, FIRST.id, ["right", "right"])
    suspend(take(), SECOND)
    assert store.answer(job, FIRST.id, ["left", "right"]) is JobState.WAITING
    assert store.question(job) == SECOND


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (["left"], "2 items and takes one answer for each, got 1"),
        (["left", "middle"], "item 2: 'middle' is none of left, right"),
        ("no", "a list, one for each item, got a str"),
        (None, "got a NoneType"),
    ],
)
def test_what_is_no_answer_to_it_is_refused_and_it_waits_on(store, job, take, answers, words):
    suspend(take())
    with pytest.raises(InvalidRequest, match=words):
        store.answer(job, FIRST.id, answers)
    assert store.get(job).state is JobState.WAITING


def test_without_choices_anything_of_json_is_an_answer(store, job, take):
    question = Question("How many?", [1, 2]).asked_after(1)
    suspend(take(), question)
    with pytest.raises(InvalidRequest, match="JSON"):
        store.answer(job, question.id, [1, {2}])
    store.answer(job, question.id, [{"n": 1}, None])
    assert take().answers(question) == [{"n": 1}, None]


def test_what_is_not_asked_cannot_be_answered(store, job, take):
    with pytest.raises(JobNotFound):
        store.answer("tiny-000000", FIRST.id, [])
    with pytest.raises(InvalidRequest, match="asks nothing now"):
        store.answer(job, FIRST.id, ["left", "right"])
    suspend(take())
    with pytest.raises(InvalidRequest, match=f"asks question {FIRST.id} now"):
        store.answer(job, SECOND.id, ["left", "right"])
    with pytest.raises(InvalidRequest, match=f"asks question {FIRST.id} now"):
        store.answer(job, SECOND.id, None)


def test_cancelled_while_it_waits_it_is_over_at_once(store, job, take):
    suspend(take())
    assert store.cancel(job) == "cancelled"
    assert store.get(job).state is JobState.CANCELLED
    assert store.unfinished() == []
    assert store.question(job) is None
    with pytest.raises(InvalidRequest, match=f"is cancelled, .*salon resume {job}"):
        store.answer(job, FIRST.id, ["left", "right"])


def test_cancelled_before_it_waits_it_never_does(store, job, take):
    lease = take()
    lease.ask(FIRST)
    assert store.cancel(job) == "requested"
    assert lease.suspend(str(FIRST)) is JobState.CANCELLED
    record = store.get(job)
    assert (record.state, record.reason) == (JobState.CANCELLED, "cancelled by the user")
    assert record.finished > 0
    assert store.unfinished() == []


def test_whoever_follows_it_sees_it_wait_and_go_on(store, job, take):
    suspend(take())
    seen = []
    thread = threading.Thread(
        target=lambda: seen.extend(event for event in store.follow(job, 0.05) if event)
    )
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "a job that waits is not over"
    store.answer(job, FIRST.id, ["left", "right"])
    take().finish(JobState.SUCCEEDED)
    thread.join(30)
    states = [event.data["state"] for event in seen if event.kind == "state"]
    assert states == ["queued", "running", "waiting", "queued", "running", "succeeded"]
    [question] = [event.data for event in seen if event.kind == "question"]
    assert (question["question"], question["items"]) == (FIRST.id, 2)


def test_suspended_twice_after_an_answer_that_was_lost_it_waits_once(store, job, take):
    lease = take()
    assert suspend(lease) is lease.suspend(str(FIRST)) is JobState.WAITING
    assert store.get(job).attempts == 0
    with pytest.raises(LeaseLost):
        lease.renew()


def test_one_of_salon_run_is_cancelled_with_its_stack(store, settings, redis_client):
    job = store.submit("mine", {}, bound_key(settings)).id
    suspend(acquire(redis_client, job, "w", "", 30, 3))
    settle_bound_jobs(settings)
    assert store.get(job).state is JobState.CANCELLED
    assert not redis_client.exists(bound_key(settings))


@pytest.mark.parametrize("raw", [b"{", b"[]", b"{}", b'{"id": 1, "text": "", "items": 3}'])
def test_a_question_that_cannot_be_read_is_named_with_the_way_out(
    store, redis_client, job, take, raw
):
    suspend(take())
    redis_client.set(question_key(job), raw)
    for use in (store.question, lambda job: store.answer(job, FIRST.id, ["left", "right"])):
        with pytest.raises(JobUnreadable, match=question_key(job)):
            use(job)
    redis_client.delete(question_key(job))
    assert store.question(job) is None
    store.cancel(job)
    store.resume(job)
    suspend(take())
    assert store.question(job) == FIRST


@pytest.mark.parametrize("raw", [b"{", b'["left"]', b'["left", "x"]', b"7"])
def test_answers_that_somebody_else_wrote_are_named_with_the_way_out(redis_client, job, take, raw):
    lease = take()
    lease.ask(FIRST)
    redis_client.hset(answers_key(job), FIRST.id, raw)
    with pytest.raises(JobUnreadable, match=f"delete field {FIRST.id} of {answers_key(job)}"):
        lease.answers(FIRST)
