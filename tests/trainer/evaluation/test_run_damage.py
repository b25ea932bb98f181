"""Run folders in which a job cannot go on."""

import json
import subprocess
import sys

import numpy as np
import pytest

from trainer.evaluation.held_out import Evaluation
from trainer.evaluation.run_damage import RunFolderUnusable, check_run_folder
from trainer.runtime.run_folder import RunFolder

TOO_LARGE = """
import resource, signal, sys
from pathlib import Path
from trainer.evaluation.run_damage import check_run_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
check_run_folder(Path(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run", fence=lambda: None)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    evaluation = Evaluation(["a", "b"], [0, 1], images, {"r": np.ones(2)})
    evaluation.save(run, "evaluation/000000.safetensors")
    run.write_text("best/best.json", json.dumps({"iteration": 1, "metric": "m", "value": 2.0}))
    return run.path


def test_a_whole_folder_is_left_as_it_was(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    check_run_folder(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["evaluation/000000.safetensors", "best/best.json"])
@pytest.mark.parametrize("content", [b"", b"cut", bytes(range(256))], ids=["empty", "cut", "other"])
def test_a_damaged_file_is_named_with_the_way_out(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(RunFolderUnusable, match=f"{name} is damaged .*or submit the job anew"):
        check_run_folder(folder)


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(folder):
    """The system refuses to write more than 1000 bytes, as a disk does that is full."""
    command = [sys.executable, "-c", TOO_LARGE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"run folder {folder} cannot be written: File too large: make room" in done.stderr
    assert "SALON_RUNS_DIR" in done.stderr
    assert not list(folder.glob(".*"))
    with pytest.raises(RunFolderUnusable, match="cannot be written: Not a directory"):
        check_run_folder(folder / "best" / "best.json")
