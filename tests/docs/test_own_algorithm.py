"""What docs/own-algorithm.md shows works as shown, though it is in no file of Salon's."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.broker import send_launch
from tests.fixtures.service import REPOSITORY
from tests.fixtures.stack import wait_until
from trainer.runtime.metrics_file import read_metrics
from trainer.runtime.run_folder import RunFolder

PAGE = (REPOSITORY / "docs" / "own-algorithm.md").read_text(encoding="utf-8")
JOB, ALGORITHM, GUIDED_JOB, GUIDED, FROM_PYTHON = re.findall(
    r"```python\n(.*?)```", PAGE, re.DOTALL
)
[ENTRY_POINT] = re.findall(r'```toml\n\[project.entry-points."(.*?)```', PAGE, re.DOTALL)
[GUIDED_ENTRY] = re.findall(r"`(guided = .*?)`", PAGE)
[SPEC] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ITERATIONS = 4000  # a few seconds: time to kill it


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The page's package, installed for all processes that are started from here."""
    site = tmp_path / "site"
    (site / "hills").mkdir(parents=True)
    (site / "hills" / "__init__.py").write_text(JOB + GUIDED_JOB)
    (site / "hills" / "climb.py").write_text(ALGORITHM)
    (site / "hills" / "guided.py").write_text(GUIDED)
    installed = site / "hills-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: hills\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[" + f"{ENTRY_POINT}{GUIDED_ENTRY}".replace('"', "")
    )
    monkeypatch.setenv("PYTHONPATH", str(site))


def salon(*arguments, folder):
    command = [Path(sys.executable).parent / "salon", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_submitted_watched_killed_resumed_and_reported(package, stack, tmp_path):
    stack.start("training")
    store = JobStore(stack.redis)
    (tmp_path / "climb.yaml").write_text(SPEC)
    overrides = [f"iterations={ITERATIONS}", "checkpoint_every=100"]
    jobs = [
        re.search(r"climb-[0-9a-f]{6}", salon("submit", "climb.yaml", *overrides, folder=tmp_path))[
            0
        ]
        for _ in range(2)
    ]
    whole, killed = jobs
    wait_until(lambda: store.get(whole).state.final, "the first is over", 120)
    wait_until(lambda: len(store.events(killed)) > 300, "the second is under way", 120)
    stack.trainer().kill()
    told = salon("watch", killed, folder=tmp_path)
    assert re.search(rf"iteration {ITERATIONS}/{ITERATIONS}  height −\S+  \d+\.\d samples/s", told)
    for job in jobs:
        assert store.get(job).state is JobState.SUCCEEDED, store.get(job).reason
    assert [store.get(job).attempts for job in jobs] == [1, 2]
    runs = [stack.settings.runs_dir / job for job in jobs]
    curves = [
        [entry["height"] for entry in read_metrics(RunFolder(run, fence=lambda: None))]
        for run in runs
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == ITERATIONS
    assert curves[0] == sorted(curves[0])
    assert curves[0][0] < -8
    assert -0.01 < curves[0][-1] <= 0
    summary = json.loads((runs[1] / "summary.json").read_text())
    assert (summary["algorithm"], summary["samples"]) == ("climb", ITERATIONS)
    assert "rewards" not in summary
    assert yaml.safe_load((runs[1] / "spec.yaml").read_text())["algorithm"]["reach"] == 0.2
    page = (runs[1] / "report.html").read_text()
    assert "<b>height</b>" in page
    assert f"{ITERATIONS} iterations" in page
    assert "succeeded" in salon("jobs", folder=tmp_path)


def test_what_is_wrong_in_its_spec_is_named(package, tmp_path):
    (tmp_path / "climb.yaml").write_text(SPEC + "prompts: [a]\n")
    code = (
        "import sys; from pathlib import Path; from trainer.spec.file import load_spec\n"
        "try: load_spec(Path(sys.argv[1]), sys.argv[2:])\n"
        "except Exception as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, "climb.yaml", "algorithm.reach=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "prompts: unknown key; it is one of ddpo and rwr, and this is a job of climb" in (
        done.stdout
    )
    assert "algorithm.reach: Input should be greater than 0 (got 0)" in done.stdout


@pytest.fixture
def submit(package, stack):
    """Submits the page's job with that algorithm, and returns its id; a guided one asks twice."""

    def submit_job(algorithm):
        spec = yaml.safe_load(SPEC) | {"iterations": 3, "checkpoint_every": 100}
        spec["algorithm"]["name"] = algorithm
        job = JobStore(stack.redis).submit("climb", spec).id
        send_launch(stack.app, job)
        return job

    return submit_job


ANSWERS = (["yes", "yes"], ["yes", "no"])


def unsuspended(site):
    """Where the page's algorithm comes to with these answers, in one process without any job."""
    code = (
        "import sys, yaml; from hills import GuidedJob; from hills.guided import Guided\n"
        "spec = yaml.safe_load(sys.argv[1]); spec['algorithm']['name'] = 'guided'\n"
        "climb = Guided(GuidedJob.model_validate(spec), None)\n"
        f"for answers in {ANSWERS}: print(climb.step().metrics['x']); climb.answer(answers)\n"
        "print(climb.step().metrics['x'])\n"
    )
    command = [sys.executable, "-c", code, SPEC]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def heights(stack, job):
    run = RunFolder(stack.settings.runs_dir / job, fence=lambda: None)
    return [entry["x"] for entry in read_metrics(run)]


def wait_for_question(store, job, after=""):
    def asked():
        assert not store.get(job).state.final, store.get(job).reason
        question = store.question(job)
        return question if question is not None and question.id != after else None

    return wait_until(asked, f"{job} asks", 120)


def wait_for(store, job, state):
    wait_until(lambda: store.get(job).state is state, f"{job} is {state}", 120)


def test_it_asks_a_person_and_leaves_its_slot_to_others_meanwhile(stack, submit, tmp_path):
    stack.start("training")
    store = JobStore(stack.redis)
    job = submit("guided")
    wait_for(store, job, JobState.WAITING)
    first = store.question(job)
    assert [item["from"] for item in first.items] == [0, 0]
    assert first.choices == ["yes", "no"]
    wait_for(store, submit("climb"), JobState.SUCCEEDED)

    assert store.cancel(job) == "cancelled"
    store.resume(job)
    send_launch(stack.app, job)
    wait_for(store, job, JobState.WAITING)
    assert store.question(job) == first, "it asks the same"
    watch = subprocess.Popen(
        [Path(sys.executable).parent / "salon", "watch", job],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "is answered" in salon("answer", job, *ANSWERS[0], folder=tmp_path)
    wait_for_question(store, job, first.id)
    wait_for(store, job, JobState.WAITING)
    # All that knew of it dies; what is left lies in the run folder and in Redis.
    stack.kill("training")
    stack.redis_server.stop(signal.SIGKILL)
    stack.redis_server.start()
    assert store.get(job).attempts == 0
    exec(FROM_PYTHON, {"job": job})
    wait_for(store, job, JobState.SUCCEEDED)
    assert heights(stack, job) == unsuspended(tmp_path / "site")
    assert store.get(job).attempts == 1
    seen = watch.communicate(timeout=60)[0]
    assert f"waiting  asks: Does this step lead up? (2 items); `salon answer {job}` answers" in seen
    assert seen.splitlines().count("queued  its question is answered") == 2


def test_killed_while_it_asks_it_asks_the_same_and_meets_its_answer(
    stack, submit, tmp_path, monkeypatch
):
    monkeypatch.setenv("SALON_ANSWER_SECONDS", "600")  # it asks, and is not suspended yet
    stack.start("training")
    store = JobStore(stack.redis)
    job = submit("guided")
    first = wait_for_question(store, job)
    stack.trainer().kill()
    assert store.get(job).state is JobState.RUNNING
    store.answer(job, first.id, ANSWERS[0])
    second = wait_for_question(store, job, first.id)
    assert store.answer(job, second.id, ANSWERS[1]) is JobState.RUNNING
    wait_for(store, job, JobState.SUCCEEDED)
    assert heights(stack, job) == unsuspended(tmp_path / "site")
    assert store.get(job).attempts == 2
    states = [event.data["state"] for event in store.events(job) if event.kind == "state"]
    assert "waiting" not in states
