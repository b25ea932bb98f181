"""A job of several processes: the result of one, and nothing lost or left over when one dies."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from salon.jobs.lease import acquire
from salon.jobs.record import JobState, job_key, lease_key
from salon.jobs.store import JobStore
from salon.queue.broker import send_launch
from tests.fixtures.service import free_port
from tests.fixtures.stack import wait_until

COMPARED = ("reward_mean", "reward_std", "loss", "approx_kl", "grad_norm", "advantage_std")
# With the usual epsilon a gradient of almost zero makes a whole step, to the side that rounding
# chooses; and with the usual range rounding decides what is clipped.
SMOOTH = {
    "name": "ddpo",
    "samples_per_iteration": 8,
    "sample_batch_size": 4,
    "sampling_steps": 3,
    "updates_per_iteration": 2,
    "learning_rate": 1e-2,
    "adam_epsilon": 1.0,
    "clip_range": 0.5,
    "per_prompt_buffer": 8,
    "per_prompt_min_count": 2,
}


@pytest.fixture
def store(stack):
    return JobStore(stack.redis)


def iterations(store, job):
    return [e.data["iteration"] for e in store.events(job) if e.kind == "iteration"]


def wait_for_iteration(store, job, number):
    wait_until(lambda: max(iterations(store, job), default=0) >= number, f"iteration {number}", 120)


def wait_for_end(store, job):
    wait_until(lambda: store.get(job).state.final, f"the end of {job}", 180)
    return store.get(job)


def ranks(stack):
    """The trainer's processes by rank."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        try:
            variables = process.environ() if "trainer" in (process.info["cmdline"] or []) else {}
        except psutil.Error:
            continue
        if variables.get("SALON_REDIS_URL") == stack.settings.redis_url:
            found[int(variables.get("RANK", "-1"))] = process
    return found


def metrics(stack, job):
    lines = (stack.settings.runs_dir / job / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return np.array([[e[name] for name in COMPARED] for e in entries if "loss" in e])


def assert_same_training(stack, job, other):
    """The first iteration to 1e-3; of all of them the mean reward to a byte of a JPEG.

    A pixel that rounding turns over changes a size by bytes, and by as much all that follows.
    """
    these, those = metrics(stack, job), metrics(stack, other)
    np.testing.assert_allclose(these[0], those[0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(these[:, 0], those[:, 0], atol=1e-3)


def test_two_processes_train_as_one_does_through_death_preemption_and_another_number(
    stack, store, submit
):
    stack.start()
    alone = submit(iterations=8, algorithm=SMOOTH)
    job = submit(iterations=8, algorithm=SMOOTH, num_processes=2)
    assert wait_for_end(store, alone).state is JobState.SUCCEEDED

    wait_for_iteration(store, job, 3)
    first = ranks(stack)
    assert first.keys() == {0, 1}
    first[1].send_signal(signal.SIGKILL)
    wait_until(lambda: store.get(job).attempts == 2, "a second attempt")
    assert not first[0].is_running()
    assert "rank 1: killed by SIGKILL" in "\n".join(store.logs(job))

    done = len(iterations(store, job))
    wait_until(lambda: len(iterations(store, job)) > done, "the second attempt's iterations", 120)
    stack.remove("training")
    record = store.get(job)
    assert (record.state, record.attempts) == (JobState.QUEUED, 1)
    assert not ranks(stack)

    stack.redis.hset(job_key(job), "spec", json.dumps({**record.spec, "num_processes": 1}))
    stack.start("training")
    send_launch(stack.app, job)
    assert wait_for_end(store, job).state is JobState.SUCCEEDED
    assert_same_training(stack, job, alone)


def test_a_job_is_taken_by_hand_once(stack, store, submit):
    job = submit(num_processes=2)
    take = [sys.executable, "-m", "trainer", "take", job]
    token = subprocess.run(take, check=True, capture_output=True, text=True).stdout
    assert token == "1\n"
    assert store.get(job).state is JobState.RUNNING
    assert stack.redis.pttl(lease_key(job)) > 500_000  # time to start its ranks everywhere
    again = subprocess.run(take, check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert f"{job} is over, or another trainer has it" in again.stderr


def test_a_rank_whose_first_rank_vanished_ends_with_the_lease(stack, submit):
    job = submit(num_processes=2)
    assert acquire(stack.redis, job, "a host that dies", "folder", 1, attempts=3).token == 1
    nowhere = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = subprocess.run(
        [sys.executable, "-m", "trainer", "run", job, "--token", "1"],
        env=os.environ | nowhere | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        check=False,
        timeout=120,
    )
    assert process.returncode == 75
    assert "lease lost: stopping at once" in "\n".join(JobStore(stack.redis).logs(job))
