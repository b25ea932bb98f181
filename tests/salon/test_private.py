import os
import stat

import pytest

from salon.errors import InvalidRequest
from salon.private import follow, make_private, make_usable, require_own, write_private


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_new_folder_is_private_and_one_that_is_there_stays_as_it_is(tmp_path):
    make_private(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700
    (tmp_path / "shared").mkdir(mode=0o750)
    make_private(tmp_path / "shared")
    assert mode(tmp_path / "shared") == 0o750


def test_a_folder_to_write_into_is_made_or_named_with_what_is_wrong(tmp_path, monkeypatch):
    make_usable(tmp_path / "a" / "b", "SALON_X")
    assert mode(tmp_path / "a" / "b") == 0o700
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    monkeypatch.setattr("os.access", lambda path, _: path.name != "closed")
    for name, words in (
        ("file", "is no folder"),
        ("file/a/b", f"lies in {tmp_path / 'file'}, which is none"),
        ("a" * 300, "cannot be made: File name too long"),
        ("link", "is a link to gone, where nothing is"),
        ("closed", f"cannot be written by user {os.geteuid()}"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            make_usable(tmp_path / name, "SALON_X")
        assert str(raised.value) == (
            f"SALON_X is {tmp_path / name}, which {words}: set it to a folder of your own"
        )


def test_a_state_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(InvalidRequest, match="state is no folder: set SALON_STATE_DIR"):
        require_own(tmp_path / "state")


@pytest.mark.parametrize("allowed", [0o700, 0o755, 0o750])
def test_a_folder_that_others_may_only_read_is_ones_own(tmp_path, allowed):
    require_own(tmp_path / "absent")
    tmp_path.chmod(allowed)
    require_own(tmp_path)


@pytest.mark.parametrize("refused", [0o770, 0o775, 0o702, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path, refused):
    tmp_path.chmod(refused)
    with pytest.raises(InvalidRequest, match=rf"\(mode {refused:o}\): chmod go-w .*STATE_DIR"):
        require_own(tmp_path)


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InvalidRequest, match=f"belongs to user {os.getuid()}.*SALON_STATE_DIR"):
        require_own(tmp_path)


def test_a_file_is_private_also_over_one_that_was_not(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    assert mode(path) == 0o644
    write_private(path, "new")
    assert (path.read_text(), mode(path)) == ("new", 0o600)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("umask", "folder", "file"),
    [
        *((0o022, 0o700, 0o600), (0o022, 0o750, 0o640), (0o022, 0o755, 0o644)),
        # Never more than the user's own umask allows.
        *((0o002, 0o770, 0o660), (0o022, 0o777, 0o644), (0o077, 0o755, 0o600)),
    ],
)
def test_files_are_as_open_as_the_folder_that_they_follow(tmp_path, umask, folder, file):
    os.umask(umask)
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(folder)
    follow(runs)
    (runs / "job").mkdir()
    (runs / "job" / "metrics.jsonl").touch()
    assert mode(runs / "job" / "metrics.jsonl") == file
    assert mode(runs / "job") & 0o066 == file & 0o066
