"""The log files of the stack, as a program writes them."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from salon.stack import log_file
from salon.stack.log_file import LogFile

GRPC = "E0000 00:00:1795867530.123456    4711 chttp2_transport.cc:1182] a connection broke"
TORCH = "[W1128 12:05:30.0 socket.cpp:204] hm"
REDIS = "9282:M 28 Nov 2026 12:05:18.916 # WARNING Memory overcommit must be enabled!"


@pytest.fixture
def write(tmp_path):
    """Have a program print; returns the objects in the file."""

    def run(text, path=tmp_path / "part.log"):
        log = LogFile(path, "part")
        end = log.pipe()
        with os.fdopen(end, "wb") as output:
            command = [sys.executable, "-c", "import sys; sys.stdout.write(sys.argv[1])", text]
            subprocess.run(command, stdout=output, check=True)
        log.drain()
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


def test_a_line_that_is_json_is_left_as_it_is(write, tmp_path):
    line = '{"event": "ü",  "level": "info"}'
    write(f"{line}\n")
    assert (tmp_path / "part.log").read_text() == f"{line}\n"
    assert stat.S_IMODE((tmp_path / "part.log").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("line", "level", "event"),
    [
        (GRPC, "error", "chttp2_transport.cc:1182] a connection broke"),
        (REDIS, "warning", "WARNING Memory overcommit must be enabled!"),
        (TORCH, "info", TORCH),
        ("[1, 2]", "info", "[1, 2]"),
        ("[" * 20_000, "info", "[" * 20_000),
        ('{"broken": ', "info", '{"broken":'),
    ],
)
def test_any_other_line_becomes_an_event(write, line, level, event):
    [found] = write(f"{line}\n")
    assert (found["event"], found["level"], found["service"]) == (event, level, "part")
    assert found["timestamp"].endswith("Z")


def test_of_a_progress_bar_the_last_state_is_kept_and_of_empty_lines_nothing(write):
    assert [entry["event"] for entry in write("\r 1%\r50%\r100%\n\n  \nnot ended")] == [
        *("100%", "not ended")
    ]


@pytest.mark.parametrize("refused", [OSError(1, "too many pipes"), AttributeError("on macOS")])
def test_a_pipe_that_cannot_be_larger_is_as_good(write, monkeypatch, refused):
    def fcntl(*_):
        raise refused

    monkeypatch.setattr(log_file.fcntl, "fcntl", fcntl)
    assert [entry["event"] for entry in write("a line\n")] == ["a line"]


def open_files():
    return sorted(
        str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_fifo()
    )


def test_a_pipe_that_nobody_can_read_is_closed(tmp_path, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(log_file.threading.Thread, "start", start)
    log = LogFile(tmp_path / "part.log", "part")
    before = open_files()
    with pytest.raises(RuntimeError):
        log.pipe()
    assert open_files() == before


def test_a_line_without_end_is_cut(write, monkeypatch):
    monkeypatch.setattr(log_file, "LINE_BYTES", 1000)
    assert [len(entry["event"]) for entry in write("x" * 2500)] == [1000, 1000, 500]


def test_a_file_that_is_full_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "MAX_BYTES", 2000)
    log = LogFile(tmp_path / "part.log", "part")
    with os.fdopen(log.pipe(), "w") as output:
        for number in range(100):
            output.write(f"line {number}\n")
    log.drain()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["part.log", "part.log.1"]
    lines = (tmp_path / "part.log.1").read_text() + (tmp_path / "part.log").read_text()
    assert json.loads(lines.splitlines()[-1])["event"] == "line 99"
    assert 2000 < len(lines) < 2 * 2000 + 400


def test_a_disk_that_is_full_stops_nobody_and_is_told_of(tmp_path):
    folder = tmp_path / "away"
    folder.mkdir()
    log = LogFile(folder / "part.log", "part")
    shutil.rmtree(folder)
    with os.fdopen(log.pipe(), "w") as output:
        output.write(f"{'lost' * 50}\n" * 10_000)  # more than the pipe holds
    log.drain()
    folder.mkdir()
    with os.fdopen(log.pipe(), "w") as output:
        output.write("kept\n")
    log.drain()
    lines = (folder / "part.log").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["10000 lines lost", "kept"]
