import errno
import json
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import structlog
from safetensors.numpy import save_file

from salon.errors import InvalidRequest
from salon.jobs.lease import LeaseLost
from trainer.runtime import run_folder
from trainer.runtime.run_folder import RunFolder, RunFolderHeld, RunFolderUnusable

HOLDER = """
import sys, time
from pathlib import Path
from trainer.runtime.run_folder import RunFolder
with RunFolder(Path(sys.argv[1]), fence=lambda: None).held(int(sys.argv[2]), 5):
    print("held", flush=True)
    time.sleep(60)
"""

CLOSED = """
import os, sys
from pathlib import Path
from trainer.runtime.run_folder import RunFolder, RunFolderUnusable
os.getuid() or os.setresuid(65534, 65534, 0)
folder = RunFolder(Path(sys.argv[1]), fence=lambda: None)
with folder.held(1, 5):
    folder.write_text("a.txt", "a")
    folder.path.chmod(0o500)
    for write in (lambda: folder.write_text("b.txt", ""), folder.folder("model").__enter__):
        try:
            write()
        except RunFolderUnusable as error:
            print(str(error).replace(f"user {os.geteuid()}", "user USER"))
(folder.path / ".lock").chmod(0o400)
try:
    folder.held(2, 5).__enter__()
except RunFolderUnusable as error:
    print(str(error).replace(f"user {os.geteuid()}", "user USER"))
"""


def lost():
    raise LeaseLost("replaced")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run", fence=lambda: None)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder under token 1."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_file_appears_whole(folder):
    folder.write_text("a/b.txt", "one")
    folder.write_text("a/b.txt", "two")
    assert (folder.path / "a" / "b.txt").read_text() == "two"
    assert [path.name for path in (folder.path / "a").iterdir()] == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(folder):
    folder.write_text("x.txt", "old")
    with pytest.raises(OSError, match="disk"), folder.file("x.txt") as path:
        path.write_text("half")
        raise OSError("disk")
    assert (folder.path / "x.txt").read_text() == "old"
    assert [path.name for path in folder.path.iterdir()] == ["x.txt"]


def test_a_folder_appears_whole_and_replaces_the_old_one(folder):
    for name in ("one", "two"):
        with folder.folder("model") as path:
            (path / name).write_text(name)
            before = [written.name for written in folder.path.glob("model/*")]
            assert before == ([] if name == "one" else ["one"])
    assert [path.name for path in folder.path.rglob("*")] == ["model", "two"]


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o770, 0o2750])
def test_what_is_written_is_for_those_who_may_read_the_folder(folder, mode):
    folder.path.mkdir()
    folder.path.chmod(mode)
    arrays = {"weights": np.zeros(2)}
    with folder.held(token=1, wait_seconds=1):
        folder.write_text("spec.yaml", "")
        with folder.file("evaluation/000000.safetensors") as path:
            save_file(arrays, path)
        with folder.folder("model") as path:
            (path / "unet").mkdir(mode=0o700)
            save_file(arrays, path / "unet" / "weights.safetensors")
        (folder.path / "tensorboard").mkdir(mode=0o700)
        (folder.path / "tensorboard" / "events").touch(mode=0o600)
    written = list(folder.path.rglob("*"))
    assert len(written) == 9
    for path in written:
        granted = mode & (0o777 if path.is_dir() else 0o666)
        assert stat.S_IMODE(path.stat().st_mode) & 0o777 == granted & 0o777, path


def test_what_a_job_that_failed_left_is_for_those_who_may_read_the_folder(folder):
    folder.path.mkdir(mode=0o755)
    with pytest.raises(ValueError, match="failed"), folder.held(token=1, wait_seconds=1):
        (folder.path / "events").touch(mode=0o600)
        raise ValueError("failed")
    assert stat.S_IMODE((folder.path / "events").stat().st_mode) == 0o644


def test_permissions_that_cannot_be_set_end_no_job(folder, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    with folder.held(token=1, wait_seconds=1):
        with folder.file("weights") as path:
            path.touch(mode=0o600)
        with folder.folder("model") as path:
            (path / "weights").touch(mode=0o600)
        (folder.path / "events").touch(mode=0o600)
        with structlog.testing.capture_logs() as logged:
            run_folder._admit_as_parent(folder.path / "events")
    assert [entry["reason"] for entry in logged] == ["Operation not permitted"]
    assert {path.name for path in folder.path.iterdir()} == {".lock", "weights", "model", "events"}


def test_a_replaced_writer_changes_nothing(folder):
    folder.write_text("x.txt", "old")
    late = RunFolder(folder.path, fence=lost)
    with pytest.raises(LeaseLost):
        late.write_text("x.txt", "late")
    with pytest.raises(LeaseLost), late.folder("model") as path:
        (path / "weights").write_text("late")
    assert (folder.path / "x.txt").read_text() == "old"
    assert [path.name for path in folder.path.iterdir()] == ["x.txt"]


def test_an_older_attempt_on_this_host_is_ended_even_when_it_is_stopped(folder, holder):
    holder.send_signal(signal.SIGSTOP)
    with folder.held(token=2, wait_seconds=10):
        assert holder.wait(60) == -signal.SIGKILL
        assert json.loads((folder.path / ".lock").read_text())["token"] == 2


def test_a_newer_attempt_is_not_touched(folder, holder, tmp_path):
    newer = RunFolder(tmp_path / "run", fence=lambda: None)
    with pytest.raises(RunFolderHeld, match='"pid"'), newer.held(token=1, wait_seconds=0.5):
        pytest.fail("two held the folder")
    assert holder.poll() is None


def test_waiting_for_the_lock_ends_when_the_lease_is_lost(folder, holder):
    start = time.monotonic()
    with pytest.raises(LeaseLost), RunFolder(folder.path, fence=lost).held(1, wait_seconds=60):
        pytest.fail("held without a lease")
    assert time.monotonic() - start < 30


def test_what_a_killed_attempt_was_writing_is_removed(folder, tmp_path):
    (tmp_path / "run" / "checkpoints" / ".000006-1.partial").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / ".000006-1.partial" / "tensors").write_text("half")
    (tmp_path / "run" / ".summary.json.partial").write_text("half")
    folder.write_text("summary.json", "whole")
    with folder.held(token=2, wait_seconds=1):
        left = sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*"))
    assert left == [".lock", "checkpoints", "summary.json"]


def replace(folder):
    folder.rename(folder.with_name("old"))
    folder.mkdir()
    (folder / ".lock").touch()


@pytest.mark.parametrize(
    "lose",
    [shutil.rmtree, replace, lambda folder: (folder / ".lock").unlink()],
    ids=["removed", "replaced", "unlocked"],
)
def test_a_folder_that_is_lost_while_it_is_held_is_not_made_anew(folder, lose):
    told = f"run folder {folder.path} was removed or replaced while .*submit the job anew"
    with folder.held(token=1, wait_seconds=1):
        folder.write_text("a.txt", "a")
        folder.check()
        lose(folder.path)
        before = sorted(folder.path.rglob("*"))
        for write in (
            folder.check,
            lambda: folder.write_text("b.txt", "b"),
            lambda: folder.folder("checkpoints/000001-1").__enter__(),
        ):
            with pytest.raises(RunFolderUnusable, match=told):
                write()
        assert sorted(folder.path.rglob("*")) == before


def test_a_folder_that_may_not_be_written_is_named():
    """By another process, which is no root: root may write everywhere."""
    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        top.chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", CLOSED, str(top / "run")],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.splitlines() == [
        f"run folder {top / 'run'} cannot be written: Permission denied: "
        f"{top / 'run' / name}: let user USER write there, and submit the job anew"
        for name in (".b.txt.partial", ".model.partial", ".lock")
    ]


def test_a_folder_that_is_a_link_is_not_written_to(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / ".x.partial").write_text("kept")
    (tmp_path / "run").symlink_to(victim)
    folder = RunFolder(tmp_path / "run", fence=lambda: None)
    with pytest.raises(InvalidRequest, match=f"a link to {victim}"), folder.held(1, 0.0):
        pass
    assert [path.name for path in victim.iterdir()] == [".x.partial"]


def test_links_within_the_folder_lead_nowhere(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    folder.path.mkdir()
    (folder.path / ".model.partial").symlink_to(victim)
    with folder.held(1, 0.0):
        assert [path.name for path in folder.path.iterdir()] == [".lock"]
    assert (victim / "kept").read_text() == "kept"
    (folder.path / ".lock").unlink()
    (folder.path / ".lock").symlink_to(victim / "kept")
    with pytest.raises(OSError, match=r"\.lock"), folder.held(1, 0.0):
        pass
    assert (victim / "kept").read_text() == "kept"


@pytest.mark.parametrize("text", ["7", "[]", "{}", '{"host": "h", "pid": "x", "token": 1}'])
def test_a_lock_that_says_anything_ends_nobody(folder, holder, text):
    (folder.path / ".lock").write_text(text)
    with pytest.raises(RunFolderHeld), folder.held(token=2, wait_seconds=0.0):
        pass
    assert holder.poll() is None


@pytest.mark.parametrize("how", ["file", "folder"])
@pytest.mark.parametrize(
    "error",
    [
        (OSError, 28, "No space left on device"),
        # As safetensors has it, which writes in Rust.
        (Exception, "Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["Python", "Rust"],
)
def test_a_full_disk_is_named_with_the_file(folder, how, error):
    name = "checkpoints/000001-1"
    with (
        pytest.raises(OSError, match="No space left on device") as full,
        getattr(folder, how)(name),
    ):
        raise error[0](*error[1:])
    assert full.value.errno == 28
    assert str(folder.path / name) in str(full.value)
