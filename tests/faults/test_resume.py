"""A job that failed or succeeded goes on as if it never had stopped."""

import json

import pytest

from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.broker import send_launch
from tests.faults.test_training import (
    assert_same_result,
    iterations,
    wait_for_end,
    wait_for_iteration,
)


@pytest.fixture
def store(stack):
    return JobStore(stack.redis)


def test_it_loses_no_iteration_to_a_reward_deadline_and_goes_on_beyond_its_end(
    stack, store, submit
):
    stack.start()
    reference = submit(iterations=20)
    assert wait_for_end(store, reference).state is JobState.SUCCEEDED

    job = submit(iterations=10, checkpoint_every=100, reward_deadline_seconds=10)
    wait_for_iteration(store, job, 3)
    stack.remove("jpeg")
    record = wait_for_end(store, job)
    assert record.state is JobState.FAILED
    assert "jpeg_compressibility" in record.reason
    stack.start("jpeg")
    store.resume(job)
    send_launch(stack.app, job)
    assert wait_for_end(store, job).state is JobState.SUCCEEDED, store.get(job).reason
    assert iterations(store, job) == list(range(1, 11)), "none was done twice"

    assert store.resume(job, 10).spec["iterations"] == 20
    send_launch(stack.app, job)
    assert wait_for_end(store, job).state is JobState.SUCCEEDED, store.get(job).reason
    assert iterations(store, job) == list(range(1, 21))
    assert_same_result(stack, job, reference)
    folders = [stack.settings.runs_dir / name for name in (job, reference)]
    found, expected = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    for key in ("iterations", "samples", "rewards"):
        assert found[key] == expected[key]
    # The evaluation of what was its end stays.
    assert [entry["iteration"] for entry in found["evaluations"]] == [0, 10, 20]
    assert "iterations: 20" in (folders[0] / "spec.yaml").read_text()
    assert "20 iterations" in (folders[0] / "model" / "README.md").read_text()
