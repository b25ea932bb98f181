"""Files that are read again: when, and what is logged while they cannot be."""

import itertools

import pytest
from structlog.testing import capture_logs

from salon.errors import InvalidRequest
from services.server import reloading
from services.server.reloading import Reloaded


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Files are looked at every time."""
    monkeypatch.setattr(reloading, "CHECK_SECONDS", 0.0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "number"
    path.write_text("1")
    return path


def number(path):
    try:
        return int(path.read_text())
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def test_a_read_that_failed_is_tried_again_though_the_file_stays_as_it_is(file):
    reads = itertools.count()

    def read():
        if next(reads) == 1:
            raise InvalidRequest("too many open files")
        return number(file)

    reloaded = Reloaded([file], read)
    file.write_text("22")
    assert [reloaded.value() for _ in range(3)] == [1, 22, 22]
    assert next(reads) == 3  # and not once more: it was read


def test_a_broken_file_is_logged_when_it_changes_and_as_a_reminder(file, monkeypatch):
    reloaded = Reloaded([file], lambda: number(file))
    with capture_logs() as logs:
        file.write_text("slip")
        assert [reloaded.value(), reloaded.value()] == [1, 1]
        file.write_text("another")
        assert [reloaded.value(), reloaded.value()] == [1, 1]
    assert ["slip" in log["reason"] for log in logs] == [True, False]
    monkeypatch.setattr(reloading, "REMINDER_SECONDS", 0.0)
    with capture_logs() as logs:
        file.write_text("a third")
        assert [reloaded.value() for _ in range(3)] == [1, 1, 1]
    assert [log["log_level"] for log in logs] == ["error"] * 3


def test_a_change_of_mode_alone_is_a_change(file):
    reads = itertools.count()
    reloaded = Reloaded([file], lambda: next(reads))
    file.chmod(0o604)
    assert [reloaded.value(), reloaded.value()] == [1, 1]
