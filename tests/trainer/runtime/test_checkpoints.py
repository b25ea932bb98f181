import subprocess

import pytest
import torch

from trainer.algorithm import State
from trainer.runtime.checkpoints import Checkpoint, Checkpoints
from trainer.runtime.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path, fence=lambda: None)


def checkpoint(iteration, samples=7):
    tensors = {"w": torch.full((3,), float(iteration)), "b": torch.randn(2, 2)}
    state = State(tensors=tensors, state={"i": iteration})
    return Checkpoint(iteration, state, {"samples": samples}, {"jpeg": "1"})


def test_what_was_saved_comes_back_bit_for_bit(folder):
    store = Checkpoints(folder, token=1, keep=2)
    assert store.latest() is None
    saved = checkpoint(5)
    store.save(saved)
    loaded = store.latest()
    assert (loaded.iteration, loaded.loop) == (5, {"samples": 7})
    assert loaded.versions == {"jpeg": "1"}
    assert loaded.algorithm["state"] == {"i": 5}
    for name, tensor in saved.algorithm["tensors"].items():
        assert torch.equal(loaded.algorithm["tensors"][name], tensor)


def test_only_the_newest_are_kept(folder):
    store = Checkpoints(folder, token=3, keep=2)
    for iteration in (2, 4, 10):
        store.save(checkpoint(iteration))
    names = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert names == ["000004-3", "000010-3"]
    assert store.latest().iteration == 10


def test_at_the_same_iteration_the_newer_attempt_wins(folder):
    for token in (9, 10):
        Checkpoints(folder, token, keep=5).save(checkpoint(4, samples=token))
    assert Checkpoints(folder, 11, keep=5).latest().loop == {"samples": 10}


FILES = ("tensors.safetensors", "state.json", "SHA256SUMS")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over(folder, file, damage):
    store = Checkpoints(folder, token=1, keep=3)
    store.save(checkpoint(2))
    store.save(checkpoint(4))
    path = folder.path / "checkpoints" / "000004-1" / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-5])
    else:
        path.unlink()
    assert store.latest().iteration == 2


def test_damaged_checkpoints_take_no_room_from_whole_ones(folder):
    first = Checkpoints(folder, token=1, keep=2)
    for iteration in (8, 10):
        first.save(checkpoint(iteration))
        (folder.path / "checkpoints" / f"{iteration:06d}-1" / "state.json").unlink()
    second = Checkpoints(folder, token=2, keep=2)
    assert second.latest() is None
    for iteration in (2, 4):
        second.save(checkpoint(iteration))
    assert [path.name for path in second._all()] == ["000002-2", "000004-2"]


def test_there_may_be_more_than_a_million_iterations(folder):
    store = Checkpoints(folder, token=1, keep=1)
    for iteration in (999_999, 1_000_000):
        store.save(checkpoint(iteration))
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["1000000-1"]
    assert store.latest().iteration == 1_000_000


@pytest.mark.parametrize("file", FILES)
def test_no_byte_of_a_checkpoint_can_change_unseen(folder, file):
    store = Checkpoints(folder, token=1, keep=1)
    store.save(checkpoint(2))
    path = folder.path / "checkpoints" / "000002-1" / file
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert store.latest() is None, f"byte {place}"
    path.write_bytes(whole)
    assert store.latest().iteration == 2


def test_sums_are_those_that_sha256sum_reads(folder):
    Checkpoints(folder, token=1, keep=1).save(checkpoint(2))
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(
        command, cwd=folder.path / "checkpoints" / "000002-1", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK") == 2
