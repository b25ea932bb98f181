"""Where Redis refuses writes for a while, no batch, job or worker ends for that."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from tests.faults.harness import Harness, assert_scored, hold_batch, photos
from tests.fixtures.refusing import KINDS, Refusing
from tests.fixtures.stack import wait_until

SPEC = {
    "name": "tiny",
    "model": "some/hub-id",
    "prompts": ["a cat", "a dog"],
    "rewards": [{"name": "jpeg_compressibility"}],
    "iterations": 3,
    "algorithm": {"name": "ddpo"},
    "evaluation": {"prompts": ["a bird"]},
}


@pytest.fixture
def refusing(stack):
    made = Refusing(stack.redis_server.url)
    yield made
    made.end()


@pytest.fixture
def harness(stack):
    made = Harness(stack)
    yield made
    made.scorer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_and_its_worker_outlast_it(stack, harness, refusing, kind):
    future, images = hold_batch(stack, harness)
    pid = stack.pid("scoring")
    more = photos(3, seed=1)
    refusing.begin(kind)
    stack.signal("jpeg", signal.SIGCONT)  # the answer of the first batch meets the refusal
    sent = []
    sending = threading.Thread(target=lambda: sent.append(harness.submit(more)))
    sending.start()
    wait_until(lambda: "Redis refuses for now" in stack.log("scoring"), "the worker is refused")
    assert not future.done()
    refusing.end()
    assert_scored(future, images)
    sending.join(60)
    assert_scored(sent[0], more)
    assert stack.pid("scoring") == pid


def test_a_batch_that_waits_for_its_service_is_not_lost_to_it(stack, harness, refusing):
    stack.start("scoring")
    images = photos(3)
    future = harness.submit(images)
    wait_until(lambda: harness.scorer._window.requests()[0].note, "the worker waits")
    refusing.begin("OOM")
    wait_until(lambda: "Redis refuses for now" in stack.log("scoring"), "the worker is refused")
    refusing.end()
    stack.start("jpeg")
    assert_scored(future, images)
    assert stack.log("scoring").count(" ready.") == 1


def test_a_job_outlasts_it_in_its_first_attempt(stack, refusing, submit):
    stack.start()
    job = submit(iterations=25)
    store = JobStore(stack.redis)

    def iterations():
        return sum(event.kind == "iteration" for event in store.events(job))

    for number, kind in ((1, "OOM"), (8, "READONLY"), (16, "OOM")):
        wait_until(lambda at=number: iterations() >= at, f"iteration {number}", 120)
        refusing.begin(kind)
        threading.Event().wait(1.0)
        refusing.end()
    wait_until(lambda: store.get(job).state.final, "it is over", 120)
    record = store.get(job)
    assert (record.state, record.reason, record.attempts) == (JobState.SUCCEEDED, "", 1)
    assert iterations() >= 25
    assert stack.log("training").count(" ready.") == stack.log("scoring").count(" ready.") == 1


@pytest.mark.parametrize("kind", ["OOM", "READONLY"])
def test_submitting_outlasts_it(stack, refusing, kind, tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(SPEC))
    refusing.begin(kind)
    command = [Path(sys.executable).parent / "salon", "submit", tmp_path / "job.yaml"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as cli:
        assert f"waiting for Redis: Redis refuses for now: {kind}" in cli.stderr.readline()
        refusing.end()
        out, err = cli.communicate(timeout=60)
    assert cli.returncode == 0, err
    [job] = JobStore(stack.redis).queued()
    assert f"submitted {job}" in out
    assert stack.redis.llen("train") == 1


def test_workers_end_at_a_redis_that_forgets(stack):
    admin = Refusing(stack.redis_server.url).admin
    admin.config_set("maxmemory", "100mb")
    admin.config_set("maxmemory-policy", "allkeys-lru")
    stack.start("training")
    said = "maxmemory-policy allkeys-lru"
    wait_until(lambda: said in stack.log("training"), "the worker says why")
    wait_until(lambda: stack._children["training"].pid == 0, "it ended")
