"""Commands about jobs, in this process, on a Redis without workers."""

import json
import re
import sys
import threading
from pathlib import Path

import pytest
import redis
import yaml
from kombu.exceptions import OperationalError
from typer.testing import CliRunner

from salon.cli.app import app
from salon.cli.jobs import _ids
from salon.errors import InvalidRequest, SalonError, StackUnavailable
from salon.jobs.lease import acquire
from salon.jobs.record import INDEX_KEY, JobState
from salon.jobs.store import JobStore
from tests.fixtures.stack import environment
from tests.salon.cli.test_records import RESULT

SPEC = {
    "name": "tiny",
    "model": "nowhere/at-all",
    "prompts": ["one", "two"],
    "rewards": [{"name": "jpeg_compressibility"}],
    "iterations": 3,
    "algorithm": {"name": "ddpo"},
    "evaluation": {"prompts": ["six"], "samples": 4},
}


@pytest.fixture
def store(redis_client):
    return JobStore(redis_client)


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return str(path)


@pytest.fixture
def salon(settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    return run


def document(done):
    return json.loads(done.stdout)


def finish(redis_client, job, state=JobState.SUCCEEDED, folder="/runs/x"):
    lease = acquire(redis_client, job, "host:1", folder, 30, 3)
    if state is JobState.SUCCEEDED:
        lease.emit("result", RESULT)
    lease.finish(state, "" if state is JobState.SUCCEEDED else "no reason")


def test_a_job_is_submitted_listed_and_shown_as_json(salon, spec, store):
    made = salon("submit", spec, "seed=2", "--json")
    record = document(made)
    assert (record["state"], record["result"], record["attempts"]) == ("queued", None, 0)
    assert record["spec"] == dict(store.get(record["id"]).spec)
    assert record["spec"]["seed"] == 2
    assert f"submitted {record['id']}" in made.stderr
    assert document(salon("show", record["id"], "--json")) == record
    [listed] = document(salon("jobs", "--json"))
    assert listed == {key: record[key] for key in listed}
    assert record.keys() - listed.keys() == {"spec", "result"}


def test_a_job_that_is_followed_as_json_ends_in_its_result(salon, spec, store, redis_client):
    def trainer():
        while not (waiting := store.queued()):
            pass
        finish(redis_client, waiting[0])

    thread = threading.Thread(target=trainer)
    thread.start()
    done = salon("submit", spec, "--watch", "--json")
    thread.join()
    assert document(done)["state"] == "succeeded"
    assert document(done)["result"] == RESULT
    assert "−1.103 ± 0.078" in done.stderr


def test_one_job_for_each_seed(salon, spec, store):
    records = document(salon("submit", spec, "--seeds", "0-1,7", "--json"))
    assert [record["spec"]["seed"] for record in records] == [0, 1, 7]
    assert {record["id"] for record in records} == set(store.ids())
    told = salon("submit", spec, "--seeds", "4").stdout
    assert f"submitted {store.ids()[0]}\n" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0-1", "seed=3"], "seed=.*--seeds"),
        (["--seeds", "2-1"], "2-1"),
        (["--out", "x.html"], "--out.*--seeds"),
        (["--seeds", "0-1", "--watch", "--out", "no/where.html"], "no/where.html"),
    ],
)
def test_what_cannot_be_submitted_is_said_before_anything_is(salon, spec, store, arguments, words):
    with pytest.raises(InvalidRequest, match=words):
        salon("submit", spec, *arguments)
    assert store.ids() == []


def test_a_single_seed_is_an_override(salon, spec, store):
    assert "seed=3" in salon("submit", spec, "--seed", "3", code=2).stderr
    assert store.ids() == []


def test_the_help_of_a_command_wraps_at_the_width_of_the_terminal_alone(salon, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    lines = [line.strip() for line in salon("score", "--help").stdout.splitlines()]
    assert any(line.startswith("A file that") and line.endswith("the command.") for line in lines)


def test_if_a_job_cannot_be_queued_it_is_not_left_behind(salon, spec, store, monkeypatch):
    def full(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("salon.cli.submit.send_launch", full)
    salon("submit", spec, code=130)
    [job] = store.newest()
    assert (job.state, job.reason) == (JobState.CANCELLED, "it could not be queued")


def test_if_it_cannot_be_taken_back_either_that_is_said(salon, spec, store, monkeypatch):
    def fails(*_):
        raise OperationalError("gone")

    monkeypatch.setattr("salon.cli.submit.send_launch", fails)
    monkeypatch.setattr("salon.jobs.store.JobStore.cancel", lambda *_: fails_too())
    with pytest.raises(
        SalonError, match=r"tiny-\w+ may be queued or not \(gone\).*salon cancel tiny-"
    ):
        salon("submit", spec)
    assert len(store.queued()) == 1


def fails_too():
    raise redis.ConnectionError("gone, too")


def test_what_is_stored_in_part_is_taken_back(store, redis_client):
    """As where somebody has put something else under a key of Salon's."""
    redis_client.set(INDEX_KEY, "no sorted set")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.submit("tiny", {})
    [raw] = redis_client.keys("salon:job:tiny-??????")
    assert redis_client.hget(raw, "state") == b"cancelled"
    assert store.queued() == []


def test_a_job_is_shown_by_what_came_of_it(salon, spec, store, redis_client):
    salon("submit", spec)
    [job] = store.ids()
    shown = salon("show", job).stdout
    assert "queued" in shown and "iterations" not in shown and "folder" not in shown
    assert f"salon show {job} --spec" in shown
    finish(redis_client, job)
    lines = salon("show", job[-6:]).stdout.splitlines()
    assert re.match(rf" {job} +succeeded", lines[1])
    assert re.match(r" jpeg +−1.103 ± 0.078 +−1.02", lines[3])
    assert lines[-3:-1] == ["report  /runs/x/report.html", "model   /runs/x/model"]
    assert yaml.safe_load(salon("show", job, "--spec").stdout) == dict(store.get(job).spec)


def test_a_shown_spec_can_be_submitted_again(salon, spec, store):
    salon("submit", spec, "seed=5")
    Path("again.yaml").write_text(salon("show", store.ids()[0], "--spec").stdout)
    salon("submit", "again.yaml")
    again, first = store.newest()
    assert again.spec == first.spec


def test_the_shell_completes_ids(salon, store, redis_client, settings, monkeypatch):
    first, second = (store.submit(name, {}).id for name in ("one", "other"))
    redis_client.zadd(INDEX_KEY, {"o$(touch x)": 0.0})
    assert set(_ids("o")) == {first, second}
    assert _ids("one") == [first]
    for url in ("redis://127.0.0.1:1/0", "redis://h:x", "http://h", "redis://h?nonsense=1"):
        monkeypatch.setenv("SALON_REDIS_URL", url)
        assert _ids("o") == []


def test_without_a_stack_the_way_to_past_jobs_is_named(salon, monkeypatch, settings):
    monkeypatch.setenv("SALON_REDIS_URL", "redis://127.0.0.1:1/0")
    for command in (["jobs"], ["show", "x"]):
        with pytest.raises(StackUnavailable, match=r"to one that runs$"):
            salon(*command)
    (settings.runs_dir / "old-0123ab").mkdir(parents=True)
    (settings.runs_dir / "old-0123ab" / "spec.yaml").touch()
    for command in (["jobs"], ["show", "x"]):
        with pytest.raises(StackUnavailable, match=rf"are in {settings.runs_dir}, and `salon rep"):
            salon(*command)


def test_cancelling_says_what_it_does(salon, store, redis_client):
    queued, running, over = (store.submit(name, {}).id for name in ("one", "two", "three"))
    acquire(redis_client, running, "host:1", "", 30, 3)
    finish(redis_client, over)
    assert salon("cancel", queued).stdout == f"{queued} is cancelled\n"
    assert "asked to stop" in salon("cancel", running).stdout
    assert f"{over} is succeeded already" in salon("cancel", over).stdout


def test_the_log_is_followed_to_its_end(salon, store, redis_client):
    job = store.submit("tiny", {}).id
    store.add_log(job, "[first]")
    assert salon("logs", job).stdout == "[first]\n"

    def trainer():
        store.add_log(job, "last")
        finish(redis_client, job)

    timer = threading.Timer(0.3, trainer)
    timer.start()
    assert salon("logs", job, "--follow").stdout == "[first]\nlast\n"
    timer.join()


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """What stands for `python -m trainer`; the command lines it was given."""
    calls = tmp_path / "calls"
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n[ ! -e fail ] || {{ echo why >&2; exit 1; }}'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return calls


def test_a_report_over_several_jobs_is_the_trainers(salon, store, redis_client, trainer):
    first, second, queued = (store.submit(name, {}).id for name in ("one", "two", "three"))
    for job in (first, second):
        finish(redis_client, job, folder=f"/runs/{job}")
    told = salon("report", first, second, "--out", "all.html").stdout
    assert told == "report  all.html\n"
    expected = f"-P -m trainer compare --out all.html -- /runs/{first} /runs/{second}\n"
    assert trainer.read_text() == expected
    Path("run").mkdir()
    salon("report", "run", second)
    assert trainer.read_text().endswith(f"--out report.html -- run /runs/{second}\n")
    with pytest.raises(InvalidRequest, match=f"{queued} is queued: no report yet"):
        salon("report", first, queued)
    store.cancel(queued)
    with pytest.raises(InvalidRequest, match="is cancelled: only a job that succeeded has a rep"):
        salon("report", first, queued)
    Path("fail").touch()
    with pytest.raises(SalonError, match="no report over these jobs: why"):
        salon("report", first)


def test_seeds_that_are_followed_end_in_one_report(salon, spec, store, redis_client, trainer):
    def run_all():
        while len(waiting := store.active()) < 3:
            pass
        for job, end in zip(waiting, ("SUCCEEDED", "FAILED", "SUCCEEDED"), strict=True):
            finish(redis_client, job.id, JobState[end], folder=f"/runs/{job.spec['seed']}")

    thread = threading.Thread(target=run_all)
    thread.start()
    with pytest.raises(
        SalonError, match=r"1 of 3 jobs did not succeed: tiny-\w+ failed: no reason"
    ):
        salon("submit", spec, "--seeds", "3-5", "--watch", "--out", "all.html")
    thread.join()
    assert trainer.read_text() == "-P -m trainer compare --out all.html -- /runs/3 /runs/5\n"


def test_with_json_the_error_that_ends_it_is_not_hidden_by_redis(salon, spec, monkeypatch):
    def away(*_):
        raise StackUnavailable("no Redis answers any more")

    def breaks(*_):
        monkeypatch.setattr("salon.cli.submit.open_store", away)
        raise SalonError("the true reason")

    monkeypatch.setattr("salon.cli.submit._watch", breaks)
    with pytest.raises(SalonError, match="the true reason"):
        salon("submit", spec, "--watch", "--json")


def test_a_result_that_cannot_be_shown_is_said(salon, spec, store, redis_client, monkeypatch):
    def trainer(_, job):
        lease = acquire(redis_client, job, "host:1", "/runs/x", 30, 3)
        lease.emit("result", {"rewards": {"x": {"before": 1}}, "eval_rewards": {}})
        lease.finish(JobState.SUCCEEDED)

    monkeypatch.setattr("salon.cli.submit.send_launch", trainer)
    told = salon("submit", spec, "--watch").stdout
    assert "of the job's history cannot be shown" in told
    assert "report  " in told


def test_status_is_a_document_even_where_the_broker_refuses(salon, monkeypatch):
    def refuses(_):
        raise OperationalError("READONLY for now")

    monkeypatch.setattr("salon.cli.status.served_queues", refuses)
    found = document(salon("status", "--json", code=1))
    assert found["redis"]["error"] == "READONLY for now"


def test_a_named_reward_without_a_worker_is_shown_beside_a_stack(salon, monkeypatch):
    stack = {"pid": 1, "command": [], "children": [], "failing": [], "rewards": {}}
    monkeypatch.setattr("salon.stack.lifecycle.running", lambda _: stack)
    monkeypatch.setenv("SALON_REWARD_TARGETS", '{"redness": "127.0.0.1:1"}')
    told = salon("status", code=1).stdout
    assert re.search(r"score\.redness +0 +none answers: start one with .*-Q score\.redness", told)


def test_who_only_scores_lacks_no_training_worker(salon, store, monkeypatch, jpeg_service):
    monkeypatch.delenv("SALON_REWARD_TARGET")
    named = {"jpeg_compressibility": jpeg_service.target}
    named["jpeg_incompressibility"] = jpeg_service.target
    monkeypatch.setenv("SALON_REWARD_TARGETS", json.dumps(named))
    found = document(salon("status", "--json"))
    assert found["healthy"]
    assert found["queues"] == [{"queue": "train", "waiting": 0, "served": False}]
    assert {reward["target"] for reward in found["rewards"]} == {jpeg_service.target}
    store.submit("tiny", {})
    assert not document(salon("status", "--json", code=1))["healthy"]
