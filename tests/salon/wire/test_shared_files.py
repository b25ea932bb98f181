import fcntl
import gc
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from salon.errors import InvalidRequest, Overloaded, SharedFileUnavailable
from salon.wire import shared_files as shared_module
from salon.wire.shared_files import SharedDirectory
from salon.wire.shared_owner import Owner, tidy

# Writes a file, says its name, and lives until it is killed.
WRITER = """
import pathlib, sys, time
from salon.wire.shared_files import SharedDirectory
shared = SharedDirectory(pathlib.Path(sys.argv[1]))
print(shared.write([b"pixels"]).path.name, flush=True)
time.sleep(60)
"""


@pytest.fixture
def shared(tmp_path):
    return SharedDirectory(tmp_path / "shared")


def test_what_is_written_is_read(shared):
    file = shared.write([b"abc", memoryview(b""), memoryview(b"defgh")])
    assert file.offsets == (0, 3, 3)
    with shared.open(file.path.name) as view:
        assert view.readonly
        assert bytes(view) == file.read() == b"abcdefgh"
        file.delete()
        file.delete()
        assert bytes(view) == b"abcdefgh"
    with pytest.raises(SharedFileUnavailable, match=rf"{file.path.name}.*inline"):
        shared.open(file.path.name).__enter__()
    with pytest.raises(SharedFileUnavailable, match="gone"):
        file.read()


def test_only_its_user_may_read_and_list_it(shared, tmp_path):
    file = shared.write([b"pixels"])
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o700


def test_what_is_read_does_not_change_when_the_file_does(shared):
    file = shared.write([b"pixels"])
    with shared.open(file.path.name) as view:
        os.truncate(file.path, 0)
        assert bytes(view) == b"pixels"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../secret", "/etc/passwd", "a/b", ".hidden", "a\0b", "a\n", "x" * 200]
)
def test_a_name_that_is_not_bare_is_refused(shared, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(InvalidRequest, match="bare file name"):
        shared.open(name).__enter__()


def test_nothing_but_a_regular_file_is_opened(shared, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "shared"
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(InvalidRequest, match=f"{name} is not a regular file"):
            shared.open(name).__enter__()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_nothing_of_another_user_is_read(shared):
    file = shared.write([b"pixels"])
    os.chown(file.path, 12345, -1)
    with pytest.raises(SharedFileUnavailable, match="belongs to user 12345"):
        shared.open(file.path.name).__enter__()
    marker = shared.marker()
    os.chown(file.path.with_name(marker), 12345, -1)
    assert not shared.sees(marker)


def test_a_file_larger_than_the_limit_is_refused(shared, monkeypatch):
    monkeypatch.setattr(shared_module, "MAX_FILE_BYTES", 5)
    with shared.open(shared.write([b"12345"]).path.name) as view:
        assert len(view) == 5
    with pytest.raises(InvalidRequest, match="6 bytes, at most 5"):
        shared.open(shared.write([b"123456"]).path.name).__enter__()


def test_a_full_directory_says_so_and_keeps_no_half_file(shared, tmp_path, monkeypatch):
    def full(descriptor, mode):
        os.close(descriptor)
        return Path("/dev/full").open(mode)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(Overloaded, match=r"no room for 5 bytes in .*SALON_SHARED_DIR"):
        shared.write([b"ab", b"cde"])
    assert list((tmp_path / "shared").glob("salon-batch-*")) == []


def test_what_cannot_be_written_says_so_and_leaves_no_half_file(shared, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, limits[1]))
    try:
        with pytest.raises(SharedFileUnavailable, match=r"cannot write into .*File too large"):
            shared.write([b"ab", b"cde"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "shared").glob("salon-batch-*")) == []


def test_a_directory_that_vanished_says_so(shared, tmp_path):
    (tmp_path / "shared").rmdir()
    with pytest.raises(SharedFileUnavailable, match=r"cannot write into .*No such file"):
        shared.write([b"pixels"])


def test_a_file_that_cannot_be_deleted_is_no_error(shared):
    file = shared.write([b"pixels"])
    file.path.unlink()
    file.path.mkdir()
    file.delete()
    assert file.path.exists()
    with pytest.raises(SharedFileUnavailable, match="directory"):
        file.read()


def test_a_directory_knows_its_own_marker_and_no_other(shared, tmp_path):
    marker = shared.marker()
    assert shared.marker() == marker
    assert SharedDirectory(tmp_path / "shared").marker() == marker
    assert SharedDirectory(tmp_path / "shared").sees(marker)
    other = SharedDirectory(tmp_path / "other")
    assert not other.sees(marker)
    assert other.marker() != marker
    for name in ("", ".", "..", "../shared/" + marker):
        assert not other.sees(name)


@pytest.fixture
def writer(tmp_path):
    """A process that wrote a file; and that file."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "shared")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    yield process, tmp_path / "shared" / name
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_killed_process_left_is_deleted_and_nothing_else(shared, writer, tmp_path):
    process, theirs = writer
    mine = shared.write([b"pixels"])
    (tmp_path / "shared" / "notes.txt").write_text("mine")
    kept = {mine.path.name, shared.marker(), "notes.txt"}
    SharedDirectory(tmp_path / "shared")
    assert theirs.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    SharedDirectory(tmp_path / "shared")
    left = {path.name for path in (tmp_path / "shared").iterdir()}
    [owner] = [name for name in left if name.startswith("salon-owner-")]
    assert left == kept | {owner}
    assert owner.removeprefix("salon-owner-") in mine.path.name


def test_a_writer_at_work_deletes_what_others_left_meanwhile(shared, writer, monkeypatch):
    process, theirs = writer
    process.kill()
    process.wait()
    shared.write([b"pixels"])
    assert theirs.exists()
    monkeypatch.setattr(shared_module, "TIDY_SECONDS", 0.0)
    shared.write([b"pixels"])
    assert not theirs.exists()


def test_a_file_outlives_the_directory_object_that_wrote_it(tmp_path):
    file = SharedDirectory(tmp_path).write([b"pixels"])
    gc.collect()
    SharedDirectory(tmp_path)
    assert file.read() == b"pixels"
    path = file.path
    del file
    gc.collect()
    SharedDirectory(tmp_path)
    assert not path.exists()


def test_an_owner_tidied_away_before_it_had_its_lock_takes_another_name(tmp_path, monkeypatch):
    tidied = []

    def lock(descriptor, operation, flock=fcntl.flock):
        if not tidied:
            tidied.extend(tmp_path.iterdir())
            tidy(tmp_path)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    owner = Owner(tmp_path)
    [left] = tmp_path.iterdir()
    assert tidied != [left]
    assert left.name.removeprefix("salon-owner-") in owner.new_file().name


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidRequest, match=rf"cannot use {path} as shared directory"):
            SharedDirectory(path)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o775, 0o702, 0o2777])
@pytest.mark.parametrize("linked", [False, True])
def test_a_directory_into_which_others_may_write_is_refused(tmp_path, mode, linked):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(mode)
    named = open_to_all
    if linked:
        named = tmp_path / "link"
        named.symlink_to(open_to_all)
    with pytest.raises(InvalidRequest, match=rf"others may write into .*{named} \(mode {mode:o}\)"):
        SharedDirectory(named)
    SharedDirectory(named / "own")
    assert (open_to_all / "own").stat().st_mode & 0o777 == 0o700


def test_a_directory_like_dev_shm_is_used_as_it_is(tmp_path):
    sticky = tmp_path / "shm"
    sticky.mkdir()
    sticky.chmod(0o1777)
    directory = SharedDirectory(sticky)
    file = directory.write([b"pixels"])
    with directory.open(file.path.name) as found:
        assert bytes(found) == b"pixels"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_directory_of_another_user_is_refused(tmp_path):
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    os.chown(other, 12345, 12345)
    with pytest.raises(InvalidRequest, match="belongs to user 12345"):
        SharedDirectory(other)
