"""What a queued job says that it waits for."""

import io

import pytest
from rich.console import Console

from salon.cli.queue import Queue
from salon.cli.watch import watch
from salon.jobs.lease import acquire
from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.broker import TRAIN_QUEUE, score_queue


class Served(Queue):
    """With workers on these queues, none of which takes anything."""

    queues = frozenset({TRAIN_QUEUE, score_queue("l2")})

    def served(self):
        return set(self.queues)


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


def spec(reward):
    return {"rewards": [{"name": reward}], "eval_rewards": []}


def test_the_job_ahead_is_named_with_what_it_waits_for(store, settings, redis_client):
    old = store.submit("old", spec("beauty")).id
    store.submit("older", spec("l2"))
    mine = store.submit("mine", spec("l2"))
    lease = acquire(redis_client, old, "host:1", "", 30, 3)
    lease.emit("waiting", {"text": "waiting for a worker on queue score.beauty"})
    said = Served(store, settings).waits_for(mine)
    assert said.startswith(f"behind {old} and 1 more, running for ")
    assert "waiting for a worker on queue score.beauty, no worker scores beauty" in said
    assert said.endswith(f"`salon cancel {old}` takes it out of the way")


def test_a_job_that_runs_says_how_far_it_is(store, settings, redis_client):
    old, mine = store.submit("old", spec("l2")).id, store.submit("mine", spec("l2"))
    lease = acquire(redis_client, old, "host:1", "", 30, 3)
    lease.emit("iteration", {"iteration": 3, "iterations": 40})
    assert "(iteration 3/40)" in Served(store, settings).waits_for(mine)


def test_a_job_that_is_behind_this_one_is_no_reason(store, settings):
    mine = store.submit("mine", spec("l2"))
    store.submit("later", spec("l2"))
    assert Served(store, settings).waits_for(mine) == "waiting for a training worker"


def test_without_workers_that_is_the_reason(store, settings):
    mine = store.submit("mine", spec("l2"))
    said = Queue(store, settings).waits_for(mine)
    assert said.startswith("no training worker answers: start one with `salon up`")
    assert said.endswith("no worker scores l2")


def test_watching_says_it_once(store, settings, redis_client, monkeypatch):
    """And again only when it waits for something else, however its numbers count up."""
    monkeypatch.setattr("salon.cli.watch.QUEUE_SECONDS", 0.0)
    old, mine = store.submit("old", spec("l2")).id, store.submit("mine", spec("l2")).id
    lease = acquire(redis_client, old, "host:1", "", 30, 3)

    class Counting(Served):
        looks = 0

        def waits_for(self, job):
            self.looks += 1
            if self.looks == 3:
                lease.emit("waiting", {"text": "waiting for x"})
            if self.looks == 5:
                store.cancel(mine)
            return super().waits_for(job).replace("running for", f"running {self.looks} for")

    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr("salon.jobs.store.JobStore.follow", quick(JobStore.follow))
    assert watch(store, mine, console, Counting(store, settings)).state is JobState.CANCELLED
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["queued", "behind", "behind", "cancelled"]
    assert "waiting for x" in lines[2]


def quick(follow):
    return lambda store, job, block_seconds: follow(store, job, 0.05)


def test_a_job_that_can_start_or_goes_on_is_not_to_be_taken_out_of_the_way(
    store, settings, redis_client
):
    old, mine = store.submit("old", spec("l2")).id, store.submit("mine", spec("l2"))
    queue = Served(store, settings)
    assert queue.waits_for(mine).startswith(f"behind {old}, queued for ")
    assert "salon cancel" not in queue.waits_for(mine)
    lease = acquire(redis_client, old, "host:1", "", 30, 3)
    lease.emit("iteration", {"iteration": 3, "iterations": 40})
    queue.queues = frozenset({TRAIN_QUEUE})  # its worker is busy and does not answer
    assert "salon cancel" not in queue.waits_for(mine)


def test_a_queued_job_whose_reward_nobody_scores_is(store, settings):
    old, mine = store.submit("old", spec("beauty")).id, store.submit("mine", spec("l2"))
    assert f"`salon cancel {old}` takes it out" in Served(store, settings).waits_for(mine)


def test_what_others_wrote_into_a_record_or_its_history_stops_nothing(
    store, settings, redis_client
):
    old = store.submit("old", {"rewards": [1, {}, {"name": "beauty"}], "eval_rewards": None}).id
    mine = store.submit("mine", {"rewards": None, "eval_rewards": [{"name": "x"}, 3]})
    lease = acquire(redis_client, old, "host:1", "", 30, 3)
    lease.emit("iteration", {})
    said = Served(store, settings).waits_for(mine)
    assert "(iteration ?/?, no worker scores beauty)" in said
