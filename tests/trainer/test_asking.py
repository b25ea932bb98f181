"""The loop with an algorithm that asks: what it keeps, and that no answer comes too late.

Run as a module it is one of two processes that share such a job.
"""

import json
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from salon.errors import RewardFailed, SalonError
from salon.jobs.lease import Lease, acquire
from salon.jobs.record import JobState, job_key, lease_key
from salon.jobs.store import JobStore
from salon.queue.connection import connect
from tests.fixtures.ranks import run_ranks
from trainer.algorithm import Asking, Question, State, Step
from trainer.loop import Loop
from trainer.rewards.versions import RewardVersions
from trainer.runtime.checkpoints import Checkpoints
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted, Suspended
from trainer.runtime.metrics_file import read_metrics
from trainer.runtime.ranks import Ranks
from trainer.runtime.run_folder import RunFolder
from trainer.spec.job_spec import AlgorithmConfig, JobSpec
from trainer.tracking.tracker import Tracker


class Spec(JobSpec):
    builder: ClassVar[str] = "nowhere:none"

    algorithm: AlgorithmConfig


class Sum:
    """Doubles a number, and adds what a person says after every second iteration."""

    def __init__(self, interrupt):
        self.number = torch.ones(1)
        self.steps = 0
        self.heard = []
        self.fails_at = self.interrupted_at = None
        self._interrupt = interrupt

    def step(self):
        if self.steps == self.interrupted_at:
            self._interrupt.set(Cause.PREEMPTED)
        self.number *= 2
        self._interrupt.check()
        if self.steps == self.fails_at:
            raise RewardFailed("no score within 600 s")
        self.steps += 1
        asked = Question("How many?", [self.steps, float(self.number)])
        return Step(1, 0.0, {"number": float(self.number)}, None if self.steps % 2 else asked)

    def answer(self, answers):
        self.heard.append(answers)
        self.number += sum(answers)

    def state_dict(self):
        return State(tensors={"number": self.number.clone()}, state={"steps": self.steps})

    def load_state_dict(self, state):
        self.number, self.steps = state["tensors"]["number"].clone(), state["state"]["steps"]


class Deaf(Sum):
    answer = None


class Job:
    """Attempts at one job, each a process's worth of objects on the same folder."""

    def __init__(self, folder, client, job=""):
        self.client, self.store = client, JobStore(client)
        self.id = job or self.store.submit("asks", {}).id
        self.folder = RunFolder(folder / "asks", fence=lambda: None)

    def take(self):
        return acquire(self.client, self.id, "w", "", 60, 3)

    def attempt(
        self, iterations=6, answer_seconds=0.0, make=Sum, lease=None, ranks=None, **settings
    ):
        """One, up to its end or until it is suspended; returns the algorithm."""
        spec = Spec.model_validate(
            {
                "name": "asks",
                "algorithm": {"name": "sum"},
                "iterations": iterations,
                "checkpoint_every": 100,
            }
        )
        lease, ranks = lease or self.take(), ranks or Ranks.alone()
        interrupt = Interrupt()
        algorithm = make(interrupt)
        vars(algorithm).update(settings)
        loop = Loop(
            self.id,
            spec,
            algorithm,
            None,
            self.folder,
            Checkpoints(self.folder, lease.token, 2),
            interrupt,
            RewardVersions(),
            lease,
            ranks,
            answer_seconds,
        )
        end = JobState.SUCCEEDED
        with ExitStack() as stack:
            tracker = None
            if ranks.first:
                tracker = Tracker(self.id, spec, self.folder, lease, loop.iteration)
                stack.enter_context(tracker)
            try:
                loop.run(tracker)
            except Suspended:
                end = JobState.WAITING
            except Interrupted:
                lease.release("its worker was stopped", refund=True)
                raise
        if ranks.first and end is JobState.WAITING:
            lease.suspend("How many?")
        elif ranks.first:
            lease.finish(end)
        return algorithm

    @property
    def state(self):
        return self.store.get(self.id).state

    def answer(self):
        question = self.store.question(self.id)
        return self.store.answer(self.id, question.id, [len(question.items), question.items[0]])

    def numbers(self):
        return [entry["number"] for entry in read_metrics(self.folder)]

    def asked(self):
        return [e.data["question"] for e in self.store.events(self.id) if e.kind == "question"]


NUMBERS = [2, 4, 16, 32, 76, 152]  # with 2 + 2 after the second, 2 + 4 after the fourth


@pytest.fixture
def job(tmp_path, redis_client):
    return Job(tmp_path, redis_client)


def test_a_question_ends_the_attempt_and_the_next_one_hears_the_answer(job):
    asked = job.attempt()
    assert isinstance(asked, Asking)
    assert (job.state, job.store.get(job.id).attempts) == (JobState.WAITING, 0)
    assert job.numbers() == [2, 4]
    question = job.store.question(job.id)
    assert question.items == [2, 4.0]
    assert question.id.startswith("2-")
    job.answer()
    assert job.attempt().heard == [[2, 2]]
    assert job.numbers() == [2, 4, 16, 32]
    job.answer()
    assert job.attempt().heard == [[2, 4]]
    assert job.state is JobState.SUCCEEDED
    assert job.numbers() == NUMBERS
    assert len(job.asked()) == 2, "a question after the last iteration is asked of nobody"
    assert json.loads((job.folder.path / "summary.json").read_text())["samples"] == 6


def test_an_answer_that_comes_while_the_trainer_waits_makes_the_same_without_another(job):
    def person():
        for _ in range(2):
            while job.store.question(job.id) is None:
                pass
            job.answer()

    thread = threading.Thread(target=person)
    thread.start()
    assert job.attempt(answer_seconds=60).heard == [[2, 2], [2, 4]]
    thread.join()
    assert job.numbers() == NUMBERS
    assert job.store.get(job.id).token == 1


def test_who_was_answered_and_dies_hears_the_same_again(job):
    job.attempt()
    job.answer()
    with pytest.raises(Interrupted):
        job.attempt(interrupted_at=2)
    assert job.attempt().heard == [[2, 2]]
    job.answer()
    job.attempt()
    assert job.numbers() == NUMBERS


def test_one_that_dies_before_it_is_suspended_asks_the_same(job, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("salon.jobs.lease.Lease.ask", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.attempt()
    kept = Checkpoints(job.folder, 2, 2).latest()
    assert (kept.iteration, kept.question.items) == (2, [2, 4.0]), "before people see it"
    job.client.delete(lease_key(job.id))
    job.attempt()
    assert job.store.question(job.id) == kept.question
    assert len(job.asked()) == 1
    job.answer()
    assert job.attempt().heard == [[2, 2]]


def test_a_stop_while_it_waits_in_its_slot_is_no_suspension(job):
    interrupts = []

    class Kept(Sum):
        def __init__(self, interrupt):
            super().__init__(interrupt)
            interrupts.append(interrupt)

    def host():
        while job.store.question(job.id) is None:
            pass
        interrupts[0].set(Cause.PREEMPTED)

    thread = threading.Thread(target=host)
    thread.start()
    with pytest.raises(Interrupted) as stopped:
        job.attempt(answer_seconds=60, make=Kept)
    thread.join()
    assert stopped.value.cause is Cause.PREEMPTED
    assert job.state is JobState.QUEUED


def test_a_job_that_is_continued_asks_what_its_last_iteration_asked(job):
    job.attempt(iterations=2)
    assert (job.state, job.asked()) == (JobState.SUCCEEDED, [])
    job.client.hset(job_key(job.id), "spec", '{"iterations": 2}')
    job.store.resume(job.id, 4)
    job.attempt()
    assert job.state is JobState.WAITING
    job.answer()
    assert job.attempt().heard == [[2, 2]]
    assert job.numbers() == NUMBERS[:4]


def test_two_processes_that_share_a_job_wait_and_hear_together(job, tmp_path, settings):
    def person():
        while job.state is not JobState.WAITING:
            time.sleep(0.05)
        job.answer()

    thread = threading.Thread(target=person, daemon=True)
    thread.start()
    run_ranks("tests.trainer.test_asking", 2, tmp_path, settings.redis_url, job.id)
    heard = [json.loads((tmp_path / f"heard-{rank}").read_text()) for rank in range(2)]
    assert heard == [[[], [[2, 2]]]] * 2
    assert job.state is JobState.SUCCEEDED
    assert job.numbers() == NUMBERS[:4]


def main(folder, url, name):
    ranks = Ranks.launched("cpu", timeout_seconds=60)
    job = Job(folder, connect(url), name)
    heard = []
    for _ in range(2):
        while ranks.first and job.state is not JobState.QUEUED:
            time.sleep(0.05)
        token = ranks.largest(job.take().token if ranks.first else 0)
        lease = Lease(job.client, name, token, 60)
        heard.append(job.attempt(iterations=4, lease=lease, ranks=ranks).heard)
    (folder / f"heard-{ranks.rank}").write_text(json.dumps(heard))
    ranks.close()


def test_an_algorithm_that_asks_and_does_not_listen_is_named(job):
    with pytest.raises(SalonError, match="algorithm sum asks a question, but has no method"):
        job.attempt(make=Deaf)
    assert job.asked() == []


def test_an_iteration_that_fails_loses_none_before_it(job):
    with pytest.raises(RewardFailed):
        job.attempt(iterations=2, fails_at=1)
    kept = Checkpoints(job.folder, 2, 2).latest()
    assert (kept.iteration, kept.question) == (1, None)
    assert kept.algorithm["tensors"]["number"].item() == 2, "before the failed one, not amid it"
    job.client.delete(lease_key(job.id))
    assert job.attempt(iterations=2).steps == 2
    assert job.numbers() == NUMBERS[:2]


def test_what_keeps_it_from_being_saved_does_not_hide_why_it_failed(job, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(RewardFailed):
        job.attempt(iterations=2, fails_at=1)


def test_a_checkpoint_of_an_older_release_is_gone_on_from(job):
    with pytest.raises(RewardFailed):
        job.attempt(iterations=2, fails_at=1)
    [state] = job.folder.path.glob("checkpoints/*/state.json")
    assert set(json.loads(state.read_text())) == {"iteration", "algorithm", "loop", "versions"}
    job.client.delete(lease_key(job.id))
    assert job.attempt(iterations=2).steps == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
