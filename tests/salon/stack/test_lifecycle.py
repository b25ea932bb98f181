"""The supervisor of the stack and its record, without services and workers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from salon.errors import InvalidRequest, StackUnavailable
from salon.private import make_private
from salon.queue.connection import RedisMisnamed
from salon.redis_password import with_new_password
from salon.stack import lifecycle as stack
from salon.stack import shared_dir as own_shared_dir
from salon.stack.state import read_state, state_file
from salon.stack.supervisor import Supervisor
from tests.fixtures.service import free_port

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def own(settings, monkeypatch):
    """Settings of a stack with a Redis of its own and nothing else."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(stack, "programs", lambda *_: [])
    url = with_new_password(settings.state_dir, f"redis://127.0.0.1:{free_port()}/0")
    yield settings.model_copy(update={"redis_url": url})
    for number, handler in handlers.items():
        signal.signal(number, handler)


def supervise(settings):
    supervisor = Supervisor(settings.state_dir / "logs")
    stack._supervise(settings, supervisor, stack.EMBEDDED, "0", ["jpeg_compressibility"])
    return supervisor


def test_its_redis_is_recorded_as_soon_as_it_runs(own, monkeypatch):
    found = []

    def look(settings, supervisor, _):
        [child] = read_state(settings)["children"]
        found.append((child["name"], child["pid"] == supervisor.children[0].pid))
        supervisor.stopping.set()

    monkeypatch.setattr(stack, "_await_redis", look)
    supervise(own)
    assert found == [("redis", True)]


def test_a_redis_that_cannot_start_ends_the_stack_and_is_named(own):
    (own.state_dir / "redis" / "appendonly.aof").write_text("no log of Redis\n")
    with pytest.raises(StackUnavailable, match="redis dies whenever"):
        supervise(own)
    assert read_state(own)["failing"] == ["redis"]
    with pytest.raises(StackUnavailable, match=r"redis did not start: see .*redis-check-aof"):
        stack._wait_ready(own, [], _Ended())


def test_whatever_keeps_jobs_from_being_settled_the_processes_are_stopped(own, monkeypatch):
    found = []

    def end(settings, _):
        found.append(settings.shared_dir)
        settings.state_dir.chmod(0o770)  # from now on it may be anybody's
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(stack, "programs", end)
    supervisor = supervise(own)
    assert [child.pid for child in supervisor.children] == [0]
    assert not found[0].exists()


class _Ended:
    """Stands for the supervisor's process, which is this one."""

    pid = os.getpid()

    def poll(self):
        return 1


@pytest.fixture
def recorded(settings):
    """Let there be a record that nobody can have written but by hand."""

    def write(**entries):
        make_private(settings.state_dir)
        nobody = {"pid": 0, "command": [], "children": [], "failing": []}
        state_file(settings).write_text(json.dumps(nobody | entries))
        return settings

    return write


@pytest.mark.parametrize("where", ["elsewhere", "another name", "a link"])
def test_a_record_cannot_name_a_folder_to_remove(recorded, tmp_path, monkeypatch, where):
    memory, precious = tmp_path / "shm", tmp_path / "precious"
    memory.mkdir()
    monkeypatch.setattr(own_shared_dir, "MEMORY_FOLDER", memory)
    folder = {
        "elsewhere": precious / "salon-x",
        "another name": memory / "other",
        "a link": precious,
    }[where]
    folder.mkdir(parents=True)
    (folder / "file").touch()
    named = folder
    if where == "a link":
        named = memory / "salon-link"
        named.symlink_to(precious)
    stack.down(recorded(own_shared_dir=str(named)))
    assert (folder / "file").exists()


def test_the_folder_that_was_made_is_removed(recorded, settings):
    folder = own_shared_dir.make_own_shared_dir(settings)
    (folder / "file").touch()
    stack.down(recorded(own_shared_dir=str(folder)))
    assert not folder.exists()


def test_what_a_stack_left_that_was_killed_as_a_whole_goes_when_the_next_starts(
    recorded, settings, monkeypatch
):
    folder = own_shared_dir.make_own_shared_dir(settings)
    monkeypatch.setattr(stack, "_whose_redis", lambda _: stack.EMBEDDED)
    monkeypatch.setattr(stack, "_check_ports", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stack.up(recorded(own_shared_dir=str(folder)))
    assert not folder.exists()


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{}", "{", '{"pid": -1, "command": [], "children": []}', '{"pid": "1"}', "\0"),
        "[" * 10**5,
    ],
    ids=lambda text: text[:20],
)
def test_a_damaged_record_is_named(recorded, text):
    settings = recorded()
    state_file(settings).write_text(text)
    for command in (stack.up, stack.down, stack.running):
        with pytest.raises(InvalidRequest, match=r"stack\.json is damaged"):
            command(settings)


def test_a_supervisor_that_just_started_is_ended_even_if_its_record_is_damaged(recorded):
    settings = recorded()
    state_file(settings).write_text("{")
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        with pytest.raises(InvalidRequest, match=r"stack\.json is damaged"):
            stack.down(settings, process.pid)
        assert process.poll() is not None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "named", ["/etc/passwd/salon-x", "/dev/shm/salon-\0", "/\ud800", "x" * 999]
)
def test_what_can_be_no_folder_keeps_no_stack_from_being_stopped(recorded, named):
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        child = {"name": "x", "pid": process.pid, "command": psutil.Process(process.pid).cmdline()}
        settings = recorded(children=[child], own_shared_dir=named)
        assert stack.down(settings)
        assert process.wait(10) == -9
        assert not state_file(settings).exists()
    finally:
        process.kill()
        process.wait()


def test_a_path_that_is_no_utf_8_damages_no_record(recorded):
    process = subprocess.Popen([*map(str.encode, SLEEPER), b"/home/\xff"], start_new_session=True)
    try:
        child = {"name": "x", "pid": process.pid, "command": psutil.Process(process.pid).cmdline()}
        assert stack.down(recorded(children=[child]))
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "url",
    [
        *("redis://127.0.0.1:{}/abc", "redis://127.0.0.1:{}/0#x", "redis://127.0.0.1:{}/0?foo=bar"),
        *("redis://127.0.0.1:{}/0?ssl_ca_certs=/nope", "redis://:p@127.0.0.1:{}/w#d@127.0.0.1:1/0"),
    ],
)
def test_no_redis_is_started_at_what_is_no_url(settings, monkeypatch, url):
    monkeypatch.setattr(stack, "_check_ports", lambda *_: 1 / 0)
    named = settings.model_copy(update={"redis_url": url.format(free_port())})
    with pytest.raises(RedisMisnamed, match="SALON_REDIS_URL"):
        stack.up(named)


@pytest.mark.parametrize("of", ["this user", "another user", "another group"])
def test_only_own_processes_are_ended(recorded, monkeypatch, of):
    process = subprocess.Popen(SLEEPER, start_new_session=of != "another group")
    try:
        if of == "another user":
            monkeypatch.setattr("os.getuid", lambda: 4711)
        child = {"name": "x", "pid": process.pid, "command": psutil.Process(process.pid).cmdline()}
        assert stack.down(recorded(children=[child])) is (of == "this user")
        assert (process.poll() is None) is (of != "this user") or process.wait(10) == -9
    finally:
        process.kill()
        process.wait()


SLOW_TO_STOP = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), exit()))
print("ready", flush=True)
time.sleep(60)
"""


def test_down_tells_what_it_still_waits_for(recorded, monkeypatch):
    monkeypatch.setattr(stack, "TELL_SECONDS", 0.1)
    command = [sys.executable, "-c", SLOW_TO_STOP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        entry = {"pid": process.pid, "command": psutil.Process(process.pid).cmdline()}
        settings = recorded(**entry, children=[{"name": "training", **entry}])
        told = []
        assert stack.down(settings, waiting=told.append)
    # It may have gone between the wait and the look at who is still there.
    assert told[0] == ["training"]
    assert set(map(tuple, told)) <= {("training",), ("the stack",)}


@pytest.mark.parametrize("command", [stack.up, stack.down])
def test_a_state_folder_that_others_may_write_is_refused(recorded, command):
    settings = recorded(own_shared_dir=str(Path("/dev/shm/salon-none")))
    settings.state_dir.chmod(0o777)
    with pytest.raises(InvalidRequest, match="others may write into the state folder"):
        command(settings)
    assert state_file(settings).exists()
