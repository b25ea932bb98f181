"""A job's promise: it ends, once, with the result it would have had, whatever dies meanwhile."""

import base64
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from safetensors.numpy import load_file

from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from tests.faults.harness import Harness, photos
from tests.fixtures.stack import wait_until
from trainer.runtime.checkpoints import Checkpoints
from trainer.runtime.metrics_file import read_metrics
from trainer.runtime.run_folder import RunFolder

TIMED = ("time", "seconds", "per_second", "wait")


@pytest.fixture
def store(stack):
    return JobStore(stack.redis)


def events(store, job, kind):
    return [event.data for event in store.events(job) if event.kind == kind]


def iterations(store, job):
    return [data["iteration"] for data in events(store, job, "iteration")]


def wait_for_iteration(store, job, number):
    wait_until(lambda: number in iterations(store, job), f"iteration {number}", 120)


def wait_for_end(store, job, seconds=180):
    wait_until(lambda: store.get(job).state.final, f"{job} is over", seconds)
    return store.get(job)


def result(stack, job):
    """All that an exact resume must not change: the weights, and each iteration's numbers."""
    folder = stack.settings.runs_dir / job
    metrics = [
        {key: value for key, value in entry.items() if not any(word in key for word in TIMED)}
        for entry in read_metrics(RunFolder(folder, fence=lambda: None))
    ]
    weights = load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    return metrics, {name: array.tobytes() for name, array in weights.items()}


def assert_same_result(stack, job, reference):
    metrics, weights = result(stack, job)
    reference_metrics, reference_weights = result(stack, reference)
    assert metrics == reference_metrics
    assert weights == reference_weights


def assert_evaluated_but_not_trained_on(stack, job, reward):
    folder = stack.settings.runs_dir / job
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["rewards"]) == ["jpeg_compressibility"]
    assert list(summary["eval_rewards"]) == [reward]
    for versions in summary["versions"].values():
        assert sorted(versions) == sorted(["jpeg_compressibility", reward])
    [checkpoint, *_] = folder.glob("checkpoints/*/state.json")
    assert json.loads(checkpoint.read_text())["versions"]["jpeg_compressibility"]
    assert summary["warnings"] == []
    before = {
        name: compared["before"]["mean"]
        for name, compared in (summary["rewards"] | summary["eval_rewards"]).items()
    }
    assert before[reward] == pytest.approx(-before["jpeg_compressibility"])
    metrics, _ = result(stack, job)
    assert not [name for entry in metrics for name in entry if reward in name]
    assert all(abs(entry["reward_mean"]) < 1e-9 for entry in metrics), "a sum of z-scores"


def test_a_job_survives_the_death_of_every_part(stack, store, submit):
    """One run through all the deaths equals, bit for bit, one through none of them."""
    stack.start()
    rewards = {
        "rewards": [{"name": "jpeg_compressibility", "weight": 2.0, "normalize": "zscore"}],
        "eval_rewards": ["jpeg_incompressibility"],
    }
    reference = submit(**rewards)
    assert wait_for_end(store, reference).state is JobState.SUCCEEDED
    assert_evaluated_but_not_trained_on(stack, reference, "jpeg_incompressibility")

    job = submit(**rewards)
    wait_for_iteration(store, job, 1)
    stack.kill("scoring")
    wait_for_iteration(store, job, 2)
    stack.kill("jpeg")
    wait_for_iteration(store, job, 4)
    stack.trainer().kill()
    wait_until(lambda: store.get(job).attempts == 2, "the second attempt")
    wait_for_iteration(store, job, 12)
    stack.kill("training")  # and its trainer
    wait_for_iteration(store, job, 20)
    stack.redis_server.stop()
    stack.redis_server.start()
    assert wait_for_end(store, job).state is JobState.SUCCEEDED

    record = store.get(job)
    assert (record.attempts, record.token) == (3, 3)
    assert_same_result(stack, job, reference)
    metrics, _ = result(stack, job)
    assert [entry["iteration"] for entry in metrics] == list(range(1, 41))
    assert all(entry["samples"] == 8 and entry["dropped"] == 0 for entry in metrics)
    # No image of 32x32 pixels has a JPEG of less than its headers: a score of 0 was made up.
    scores = "rewards/jpeg_compressibility"
    assert all(e[f"{scores}/mean"] + 4 * e[f"{scores}/std"] < -0.3 for e in metrics)
    # What was in flight when Redis died is handed out again, for which Celery looks every 100 s.
    wait_until(lambda: not blobs_of_messages(stack.redis), "every message is answered", 130)
    # Each of the two trainers may have been killed between a blob and its message.
    left = stack.redis.keys("salon:blob:*")
    assert len(left) <= 2 and all(stack.redis.ttl(key) > 0 for key in left)


def blobs_of_messages(client):
    """The blobs in Redis that a message names, in a queue or in the hands of a worker."""
    queued = [raw for key in client.keys("score.*") for raw in client.lrange(key, 0, -1)]
    messages = "".join(_decoded(raw) for raw in [*queued, *client.hvals("unacked")])
    return [key for key in client.keys("salon:blob:*") if key.decode() in messages]


def _decoded(raw):
    """A message of kombu's, whose body is JSON in base64; what is kept of one is a list."""
    message = json.loads(raw)
    body = (message[0] if isinstance(message, list) else message)["body"]
    return base64.b64decode(body).decode()


def test_a_stopped_worker_hands_its_job_on_without_loss(stack, store, submit):
    """SIGTERM, as from `salon down` or a node that drains, costs no attempt."""
    stack.start()
    reference = submit(checkpoint_every=100)
    wait_for_end(store, reference)
    job = submit(checkpoint_every=100)
    wait_for_iteration(store, job, 2)
    stack.remove("training")
    assert stack.trainer() is None
    record = store.get(job)
    assert (record.state, record.attempts) == (JobState.QUEUED, 0)
    stack.start("training")
    assert wait_for_end(store, job).state is JobState.SUCCEEDED
    assert_same_result(stack, job, reference)
    assert iterations(store, job) == list(range(1, 41))


def test_a_trainer_that_slept_through_its_lease_writes_nothing_more(stack, store, submit):
    """The worker dies, its child does not, sleeps, and wakes when another has taken over."""
    stack.start()
    reference = submit()
    wait_for_end(store, reference)
    job = submit()
    wait_for_iteration(store, job, 2)
    sleeper = stack.trainer()
    sleeper.send_signal(signal.SIGSTOP)
    # Alone, not its group: this is the worker on a host where nobody reaps its children.
    os.kill(stack.pid("training"), signal.SIGSTOP)
    other = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "workers", "worker", "-n", "other@%h"),
            *("-Q", "train", "-P", "threads", "-c", "1", "--loglevel", "INFO"),
        ],
        start_new_session=True,
    )
    try:
        wait_until(lambda: store.get(job).token == 2, "another worker takes over")
        sleeper.send_signal(signal.SIGCONT)
        wait_until(lambda: not _lives(sleeper), "the replaced trainer is gone")
        assert wait_for_end(store, job).state is JobState.SUCCEEDED
    finally:
        other.terminate()
        other.wait(30)
    assert_same_result(stack, job, reference)


def test_a_trainer_goes_on_when_only_its_worker_dies(stack, store, submit):
    stack.start("jpeg", "scoring")
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "workers", "worker", "-n", "lone@%h"),
            *("-Q", "train", "-P", "threads", "-c", "1", "--loglevel", "INFO"),
        ],
        start_new_session=True,
    )
    try:
        job = submit()
        wait_for_iteration(store, job, 1)
        worker.kill()
        worker.wait()
        stack.start("training")
        assert wait_for_end(store, job).state is JobState.SUCCEEDED
    finally:
        worker.kill()
        if orphan := stack.trainer():
            orphan.kill()
    assert store.get(job).token == 1
    assert iterations(store, job) == list(range(1, 41))


def test_a_job_that_waits_behind_another_loses_no_attempt_to_restarts(stack, store, submit):
    stack.start()
    first, second = submit(iterations=10_000), submit()
    wait_for_iteration(store, first, 1)
    for _ in range(2):
        stack.remove("training")
        assert store.get(first).attempts == store.get(second).attempts == 0
        stack.start("training")
        wait_until(lambda: JobState.RUNNING in states(store, first, second), "one of them runs")
    store.cancel(first)
    assert wait_for_end(store, second).state is JobState.SUCCEEDED


def states(store, *jobs):
    return [store.get(job).state for job in jobs]


def test_a_job_that_kills_every_trainer_fails_with_the_reason(stack, store, submit):
    stack.start()
    job = submit()
    for attempt in (1, 2, 3):
        wait_until(lambda a=attempt: store.get(job).attempts == a, f"attempt {attempt}")
        wait_until(stack.trainer, "a trainer").kill()
    record = wait_for_end(store, job)
    assert record.state is JobState.FAILED
    assert "gave up after 3 attempts" in record.reason
    assert "SIGKILL" in record.reason


def test_a_running_job_is_cancelled_between_steps(stack, store, submit):
    stack.start()
    job = submit(iterations=10_000)
    wait_for_iteration(store, job, 1)
    assert store.cancel(job) == "requested"
    record = wait_for_end(store, job)
    assert (record.state, record.reason) == (JobState.CANCELLED, "cancelled by the user")
    wait_until(lambda: stack.trainer() is None, "the trainer is gone")


def test_a_job_waits_for_its_service_says_so_and_goes_on(stack, store, submit):
    stack.start("scoring", "training")
    job = submit(iterations=2)
    service = f"reward service jpeg_compressibility at {stack.settings.reward_target}"
    wait_until(lambda: service in str(events(store, job, "waiting")), "it says what for", 90)
    assert store.get(job).state is JobState.RUNNING
    stack.start("jpeg")
    assert wait_for_end(store, job).state is JobState.SUCCEEDED


def test_a_job_whose_service_stays_away_fails_and_names_it(stack, store, submit):
    stack.start("scoring", "training")
    harness = Harness(stack, rewards=["jpeg_compressibility"])
    harness.submit(photos(1))
    target = stack.settings.reward_target
    wait_until(lambda: target in str(harness.notes), "the scoring worker is there", 90)
    harness.scorer.close()
    job = submit(reward_deadline_seconds=5)
    record = wait_for_end(store, job)
    assert record.state is JobState.FAILED
    assert "jpeg_compressibility" in record.reason
    assert target in record.reason


def test_a_cancelled_job_does_not_wait_for_its_service(stack, store, submit):
    stack.start("scoring", "training")
    job = submit()
    wait_until(lambda: events(store, job, "waiting"), "the job waits", 90)
    store.cancel(job)
    assert wait_for_end(store, job, 30).state is JobState.CANCELLED


def test_a_model_that_is_not_there_fails_the_job_in_one_line(stack, store, submit):
    stack.start()
    job = submit(model="/nowhere/at-all")
    record = wait_for_end(store, job)
    assert record.state is JobState.FAILED
    assert "/nowhere/at-all" in record.reason
    assert "\n" not in record.reason
    assert record.attempts == 1


def test_a_full_disk_fails_the_job_and_leaves_no_half_written_file(stack, store, submit):
    runs = stack.settings.runs_dir
    runs.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(runs)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        stack.start()
        job = submit()
        record = wait_for_end(store, job)
        assert record.state is JobState.FAILED
        assert "No space left on device" in record.reason
        assert "\n" not in record.reason
        assert not [path for path in (runs / job).rglob("*") if "partial" in path.name]
        whole = Checkpoints(RunFolder(runs / job, fence=lambda: None), token=1, keep=1).latest()
        kept = [path.name for path in (runs / job).glob("checkpoints/*")]
        assert kept == ([f"{whole.iteration:06d}-1"] if whole else [])
        wait_until(lambda: stack.trainer() is None, "the trainer is gone")
    finally:
        stack.stop()
        subprocess.run(["umount", "-l", str(runs)], check=True)


def _lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_is_logged_of_a_job_names_it_and_a_trainer_that_is_done_is_not_killed(
    stack, store, submit
):
    stack.start("scoring", "training")  # and no service yet
    job = submit(iterations=1)
    wait_until(lambda: "batch waits" in stack.log("scoring"), "a batch waits", 120)
    stack.start("jpeg")
    assert wait_for_end(store, job).state is JobState.SUCCEEDED
    stack.signal("training", signal.SIGTERM)  # while Python still ends in the trainer
    wait_until(lambda: "trainer ended" in stack.log("training"), "the worker has seen its end")
    for part in ("scoring", "training"):
        lines = [json.loads(line) for line in stack.log(part).splitlines()]
        about = [line for line in lines if "batch" in line or line["service"] == "trainer"]
        assert about and all(line["job"] == job for line in about)
    assert [line["end"] for line in lines if line["event"] == "trainer ended"] == ["exit code 0"]
    for path in (stack.settings.runs_dir, *stack.settings.runs_dir.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
