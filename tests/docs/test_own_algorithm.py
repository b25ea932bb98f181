"""What docs/own-algorithm.md shows works as shown, though it is in no file of Salon's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from salon.jobs.store import JobState, JobStore
from tests.fixtures.service import REPOSITORY
from tests.fixtures.stack import wait_until
from trainer.runtime.metrics_file import read_metrics
from trainer.runtime.run_folder import RunFolder

PAGE = (REPOSITORY / "docs" / "own-algorithm.md").read_text(encoding="utf-8")
JOB, ALGORITHM = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[ENTRY_POINT] = re.findall(r'```toml\n\[project.entry-points."(.*?)```', PAGE, re.DOTALL)
[SPEC] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ITERATIONS = 4000  # a few seconds: time to kill it


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The page's package, installed for all processes that are started from here."""
    site = tmp_path / "site"
    (site / "hills").mkdir(parents=True)
    (site / "hills" / "__init__.py").write_text(JOB)
    (site / "hills" / "climb.py").write_text(ALGORITHM)
    installed = site / "hills-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: hills\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[" + ENTRY_POINT.replace('"', ""))
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
