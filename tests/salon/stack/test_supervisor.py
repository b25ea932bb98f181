import json
import signal
import sys
import time

import psutil
import pytest

from salon.stack.supervisor import Program, Supervisor
from tests.fixtures.stack import wait_until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
# A child that starts a child of its own, and says so.
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', "
    "'import time; time.sleep(60)']); print(p.pid, flush=True); p.wait()",
]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('ready', flush=True); time.sleep(60)",
]


@pytest.fixture
def supervisor(tmp_path):
    made = Supervisor(tmp_path)
    yield made
    made.stop()


def said(folder, name):
    """The lines that a child has printed, as they are in its log."""
    log = folder / f"{name}.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["event"] for line in lines]


def tend_until(supervisor, condition, what):
    def look():
        supervisor.tend()
        return condition()

    return wait_until(look, what, 20)


def test_a_dead_child_is_started_again(supervisor):
    child = supervisor.add(Program("sleeper", SLEEPER))
    first = child.pid
    psutil.Process(first).kill()
    second = tend_until(supervisor, lambda: child.pid not in (0, first) and child.pid, "a new one")
    assert psutil.pid_exists(second)


def test_what_a_dead_child_leaves_behind_is_killed(supervisor, tmp_path):
    child = supervisor.add(Program("parent", PARENT))
    orphan = psutil.Process(int(wait_until(lambda: said(tmp_path, "parent"), "its child")[0]))
    psutil.Process(child.pid).kill()
    tend_until(supervisor, lambda: not _lives(orphan), "the orphan is gone")
    assert not _lives(orphan)


def test_quick_deaths_are_repeated_more_and_more_slowly(supervisor, tmp_path):
    child = supervisor.add(Program("broken", [sys.executable, "-c", "print('x', flush=True)"]))
    assert not child.fails_to_start
    started = time.monotonic()
    tend_until(supervisor, lambda: said(tmp_path, "broken") == ["x"] * 3, "three starts")
    # Pauses of 1 and 2 s lie between them: not a spinning restart.
    assert time.monotonic() - started > 2.5
    tend_until(supervisor, lambda: child.fails_to_start, "the third death")


def test_stopping_ends_the_whole_group_even_a_stubborn_one(supervisor, tmp_path):
    stubborn = supervisor.add(Program("stubborn", STUBBORN, grace_seconds=0.5))
    parent = supervisor.add(Program("parent", PARENT))
    wait_until(lambda: said(tmp_path, "stubborn"), "it ignores SIGTERM")
    orphan = psutil.Process(int(wait_until(lambda: said(tmp_path, "parent"), "its child")[0]))
    processes = [psutil.Process(stubborn.pid), psutil.Process(parent.pid), orphan]
    supervisor.stop()
    wait_until(lambda: not any(_lives(process) for process in processes), "all are gone", 10)
    assert stubborn.pid == parent.pid == 0


def test_a_child_has_its_own_environment_and_group(supervisor, tmp_path):
    show = "import os; print(os.environ['COLOUR'], os.getpgid(0) == os.getpid(), flush=True)"
    supervisor.add(Program("show", [sys.executable, "-c", show], {"COLOUR": "red"}))
    assert wait_until(lambda: said(tmp_path, "show"), "output") == ["red True"]


def _lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stopping_a_stopped_process_works(supervisor):
    child = supervisor.add(Program("sleeper", SLEEPER, grace_seconds=0.5))
    process = psutil.Process(child.pid)
    process.send_signal(signal.SIGSTOP)
    supervisor.stop()
    assert not _lives(process)
