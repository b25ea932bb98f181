"""Boards by the real packages, offline, read back from what they left on the disk."""

import json
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from salon.errors import InvalidRequest
from tests.fixtures.service import wait_until
from trainer.tracking.boards import Forgiving, Pictures, Trackio, WandB
from trainer.tracking.tensorboard import TensorBoard

PICTURES = Pictures(np.zeros((2, 8, 8, 3), np.uint8), ["a cat | 1.5", "a dog | 2.5"])


def show(board, iterations):
    for iteration in iterations:
        board.scalars(iteration, {"reward_mean": iteration / 2, "eval/r/mean": 3.0})
    board.pictures(iterations[-1], "evaluation", PICTURES)
    board.close(failed=False)


KILLED = """
import os, signal, sys
from pathlib import Path
from trainer.tracking.tensorboard import TensorBoard
board = TensorBoard(Path(sys.argv[1]), 0)
for iteration in range(1, 8):
    board.scalars(iteration, {"reward_mean": iteration / 2})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_tensorboard_has_each_point_once_after_a_kill_and_a_resume(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode < 0
    (first,) = tmp_path.iterdir()
    # Files are read in the order of their names, which have the second of their making.
    wait_until(lambda: int(time.time()) > int(first.name.split(".")[3]), "the next second")
    resumed = TensorBoard(tmp_path, 5)
    for iteration in (6, 7, 8):
        resumed.scalars(iteration, {"reward_mean": iteration / 2})
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("train/reward_mean")
    assert [(point.step, point.value) for point in shown] == [(i, i / 2) for i in range(1, 9)]


def records(path):
    """The records of W&B's file: a log in LevelDB's format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        if place + 7 > len(data):
            return  # its writer has not come further
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + 7 + length > len(data):
            return
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a record in one piece, or its last piece
            yield Record.FromString(whole)
            whole = b""


def kinds(path):
    return {record.WhichOneof("record_type") for record in records(path)}


def history(folder):
    """Id and project of the run in `folder`, and what was logged."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    # Another process writes it, and may come to its last record after `close` returned.
    wait_until(lambda: "exit" in kinds(path), f"the last record in {path}")
    found = list(records(path))
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    rows = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in found
        if r.WhichOneof("record_type") == "history"
    ]
    return run.run_id, run.project, rows


def test_wandb_gets_curves_and_captioned_pictures_and_goes_on_with_the_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempts = []
    for iterations in ([1, 2, 3], [3, 4]):  # the second attempt begins at a checkpoint
        folder = tmp_path / str(len(attempts))  # of its own: W&B names runs by the second
        folder.mkdir()
        show(WandB("job-1", "a-project", {"seed": 0}, folder), iterations)
        attempts.append(history(folder))
    first, second = attempts
    assert first[:2] == second[:2] == ("job-1", "a-project")
    curves = [(row["iteration"], row["reward_mean"]) for row in first[2] if "reward_mean" in row]
    assert curves == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [row["iteration"] for row in second[2] if "eval/r/mean" in row] == [3, 4]
    (shown,) = [row for row in first[2] if "evaluation/count" in row]
    assert (shown["iteration"], shown["evaluation/count"]) == (3, 2)
    assert shown["evaluation/captions"] == list(PICTURES.captions)
    assert list(tmp_path.glob("0/wandb/offline-run-*/files/media/images/*.png"))


def test_wandb_without_a_key_says_what_to_set(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # In a process of its own: wandb reads its settings once.
    start = "from trainer.tracking.boards import WandB; WandB('j', 'p', {}, '.')"
    command = [sys.executable, "-c", start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("salon.errors.InvalidRequest: trackers: wandb cannot start")
    assert "set WANDB_API_KEY where the trainer runs, or WANDB_MODE=offline" in last


def test_trackio_gets_curves_and_captioned_pictures_and_goes_on_with_the_run(tmp_path, monkeypatch):
    # TRACKIO_DIR is read when the package is imported.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    for iterations in ([1, 2, 3], [3, 4]):
        show(Trackio("job-1", "a-project", {"seed": 0}), iterations)
    assert storage.get_runs("a-project") == ["job-1"]
    rows = storage.get_logs("a-project", "job-1")
    curve = [(row["step"], row["reward_mean"]) for row in rows if "reward_mean" in row]
    assert curve == [(1, 0.5), (2, 1.0), (3, 1.5), (3, 1.5), (4, 2.0)]
    captions = [row["evaluation/1"]["caption"] for row in rows if "evaluation/1" in row]
    assert captions == ["a dog | 2.5"] * 2


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("wandb", lambda folder: WandB("j", "p", {}, folder)),
        ("trackio", lambda folder: Trackio("j", "p", {})),
    ],
)
def test_a_package_that_is_not_there_is_named_with_the_way_out(name, start, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # how Python marks it as absent
    with pytest.raises(InvalidRequest, match=f"{name} is not installed .* pip install {name}"):
        start(tmp_path)


class Unreachable:
    def fail(self, *_, **__):
        raise ConnectionError("no route to host")

    scalars = pictures = close = fail


def test_a_board_that_fails_is_told_of_once_and_ends_nothing():
    told = []
    board = Forgiving("wandb", Unreachable(), told.append)
    show(board, [1, 2])
    assert told == [
        "wandb failed: ConnectionError: no route to host; training goes on, and metrics.jsonl and "
        "tensorboard/ have everything"
    ]
