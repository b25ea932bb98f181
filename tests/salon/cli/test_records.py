import io
import re

import pytest
from rich.console import Console

from salon.cli.records import find, record_as_json, result_table, whole_as_json
from salon.cli.terminal import print_table
from salon.errors import InvalidRequest
from salon.jobs.lease import acquire
from salon.jobs.record import JobNotFound, JobState
from salon.jobs.store import JobStore

RESULT = {
    "rewards": {
        "jpeg": {
            "before": {"mean": -1.1028, "std": 0.0778, "n": 64},
            "after": {"mean": -1.02, "std": 0.1, "n": 64},
            "effect_size": -0.971,
            "ci95": [-1.287, 0.0],
        }
    },
    "eval_rewards": {
        "flat": {
            "before": {"mean": 1.0, "std": None, "n": 1},
            "after": {"mean": None, "std": None, "n": 0},
            "effect_size": None,
            "ci95": None,
        }
    },
}


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


def test_a_job_is_found_by_how_only_it_begins_or_ends(store):
    first, second = (store.submit(name, {}) for name in ("one", "other"))
    for text in (first.id, "on", first.id[-4:]):
        assert find(store, text) == first
    with pytest.raises(InvalidRequest, match=f"{second.id}.*{first.id}.*write more"):
        find(store, "o")
    for text in ("", "none"):
        with pytest.raises(JobNotFound):
            find(store, text)


def test_what_is_not_yet_is_null(store):
    job = store.submit("tiny", {"seed": 3})
    record = whole_as_json(store, job)
    assert record["id"] == job.id
    assert record["spec"] == {"seed": 3}
    assert record["submitted"] == job.submitted
    nothing = ("owner", "folder", "started", "finished", "result")
    assert {name: record[name] for name in nothing} == dict.fromkeys(nothing)
    assert record.keys() - {"result", "spec"} == record_as_json(job).keys()


def test_the_result_is_that_of_the_last_event(store, redis_client):
    job = store.submit("tiny", {})
    lease = acquire(redis_client, job.id, "host:1", "/runs/x", 30, 3)
    lease.emit("result", {"rewards": {}, "eval_rewards": {}})
    lease.emit("result", RESULT)
    lease.finish(JobState.SUCCEEDED)
    record = whole_as_json(store, store.get(job.id))
    assert (record["state"], record["folder"]) == ("succeeded", "/runs/x")
    assert record["result"] == RESULT


def test_before_after_and_effect_size_have_one_minus_and_one_number_of_decimals():
    console = Console(file=io.StringIO(), width=20)
    print_table(result_table(RESULT), console)
    _, trained, evaluated = console.file.getvalue().splitlines()
    assert re.split(r"\s{2,}", trained.strip()) == [
        "jpeg",
        "−1.103 ± 0.078",
        "−1.020 ± 0.100",
        "−0.97 [−1.29, 0.00]",
    ]
    assert re.split(r"\s{2,}", evaluated.strip())[1:3] == ["1.00", "—"]
