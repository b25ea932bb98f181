"""Sums and agreements of two real processes over gloo; run as a module it is one of them."""

import json
import sys
from pathlib import Path

import pytest
import redis
import torch
from safetensors.torch import load_file, save_file

from salon.errors import (
    RewardFailed,
    SalonError,
    SampleError,
    UnknownInstance,
    VersionMismatch,
)
from salon.reward.v1.reward_pb2 import ERROR_CODE_INVALID_IMAGE
from tests.fixtures.ranks import run_ranks
from trainer.runtime import ranks as ranks_module
from trainer.runtime.interrupt import Cause, Interrupted
from trainer.runtime.ranks import Ranks

COUNT = 2
LARGE = 2**20 + 3


def tensors_of(rank):
    """Of two dtypes, some larger than a bucket, some empty, one of them not contiguous."""
    random = torch.Generator().manual_seed(rank)
    return {
        "scalar": torch.tensor(1.5 + rank),
        "matrix": torch.randn(3, 4, generator=random).t(),
        "empty": torch.zeros(0),
        "double": torch.randn(5, generator=random, dtype=torch.float64),
        "large": torch.randn(LARGE, generator=random),
        "whole": torch.arange(4) + rank,
        "nan": torch.tensor([float("nan"), 1.0]) * (1 - rank),
    }


ERRORS = {
    "none": (None, None),
    "one failed": (ValueError("mine"), None),
    "both failed": (ValueError("mine"), ValueError("mine")),
    "one failed at length": (None, RewardFailed("no score: " + "ü" * 1000)),
    "one failed without a word": (RewardFailed(), None),
    "one lost Redis": (None, redis.ConnectionError("gone")),
    "one failed, one lost Redis": (redis.ConnectionError("gone"), RewardFailed("no score")),
    "one preempted": (None, Interrupted(Cause.PREEMPTED)),
    "one cancelled, one preempted": (Interrupted(Cause.CANCELLED), Interrupted(Cause.PREEMPTED)),
    "one failed, one cancelled": (Interrupted(Cause.CANCELLED), ValueError("mine")),
    "one sample failed": (None, SampleError(ERROR_CODE_INVALID_IMAGE, "cut short")),
    "one of an unknown class": (SalonError("in\ntwo lines"), None),
    "one lost its instance": (None, UnknownInstance("no instance")),
    "both lost theirs": (VersionMismatch("at 2"), UnknownInstance("no instance")),
    "one lost its instance, one Redis": (UnknownInstance("none"), redis.ConnectionError("gone")),
    "one lost its instance, one failed": (UnknownInstance("none"), RewardFailed("no score")),
}


def outcome(ranks, error):
    try:
        ranks.agree(error)
    except Exception as raised:  # noqa: BLE001 - any may be the outcome
        return f"{type(raised).__name__}: {raised}"
    return "goes on"


def main(folder):
    ranks_module.BUCKET_BYTES = 2**20
    ranks = Ranks.launched("cpu", timeout_seconds=60)
    tensors = tensors_of(ranks.rank)
    ranks.sum_(tensors.values())
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{ranks.rank}.safetensors")
    facts = {
        "rank": ranks.rank,
        "count": ranks.count,
        "first": ranks.first,
        "device": str(ranks.device),
        "largest": [ranks.largest(10 + ranks.rank), ranks.largest(10 - ranks.rank)],
        "outcomes": {name: outcome(ranks, errors[ranks.rank]) for name, errors in ERRORS.items()},
    }
    ranks.barrier()
    (folder / f"{ranks.rank}.json").write_text(json.dumps(facts))
    ranks.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote."""
    path = tmp_path_factory.mktemp("ranks")
    run_ranks("tests.trainer.runtime.test_ranks", COUNT, path)
    return path


@pytest.fixture(scope="module")
def facts(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(COUNT)]


def test_sums_are_the_same_on_all_ranks_and_right(folder):
    first, second = (load_file(folder / f"{rank}.safetensors") for rank in range(COUNT))
    for name, own in tensors_of(0).items():
        expected = own + tensors_of(1)[name]
        torch.testing.assert_close(first[name], expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def test_each_knows_its_place(facts):
    assert [(f["rank"], f["count"], f["first"]) for f in facts] == [(0, 2, True), (1, 2, False)]
    assert {f["device"] for f in facts} == {"cpu"}


def test_the_largest_number_is_everyones(facts):
    assert [f["largest"] for f in facts] == [[11, 10], [11, 10]]


@pytest.mark.parametrize(
    ("case", "outcomes"),
    [
        ("none", ["goes on", "goes on"]),
        ("one failed", ["ValueError: mine", "RankFailed: rank 0 of 2 failed: ValueError: mine"]),
        (
            "one failed at length",
            ["RewardFailed: rank 1 of 2 failed: no score: üü", "RewardFailed: no score: üü"],
        ),
        ("one failed without a word", ["RewardFailed: ", "RewardFailed: rank 0 of 2 failed: "]),
        ("one lost Redis", ["RankLost: rank 1 of 2 failed: ConnectionError: gone", "Connection"]),
        (
            "one failed, one lost Redis",
            ["RewardFailed: rank 1 of 2 failed: no score", "RewardFailed: no score"],
        ),
        (
            "one sample failed",
            ["SampleError: rank 1 of 2 failed: cut short", "SampleError: cut short"],
        ),
        (
            "one of an unknown class",
            ["SalonError: in\ntwo lines", "RankFailed: rank 0 of 2 failed: in\ntwo lines"],
        ),
        (
            "one lost its instance",
            ["UnknownInstance: rank 1 of 2 failed: no instance", "UnknownInstance: no instance"],
        ),
        ("both lost theirs", ["VersionMismatch: at 2", "UnknownInstance: no instance"]),
        (
            "one lost its instance, one Redis",
            ["UnknownInstance: none", "UnknownInstance: rank 0 of 2 failed: none"],
        ),
        (
            "one lost its instance, one failed",
            ["RewardFailed: rank 1 of 2 failed: no score", "RewardFailed: no score"],
        ),
        ("both failed", ["ValueError: mine", "ValueError: mine"]),
        ("one preempted", ["Interrupted: preempted", "Interrupted: preempted"]),
        ("one cancelled, one preempted", ["Interrupted: cancelled", "Interrupted: cancelled"]),
        ("one failed, one cancelled", ["RankFailed: rank 1 of 2 failed: ", "ValueError: mine"]),
    ],
)
def test_an_error_of_one_stops_all(facts, case, outcomes):
    actual = [f["outcomes"][case] for f in facts]
    assert all(a.startswith(e) for a, e in zip(actual, outcomes, strict=True)), actual


def test_one_process_waits_for_nobody():
    ranks = Ranks.alone()
    tensor = torch.tensor([1.0, 2.0])
    ranks.sum_([tensor])
    assert tensor.tolist() == [1, 2]
    assert (ranks.rank, ranks.count, ranks.first, ranks.largest(7)) == (0, 1, True, 7)
    ranks.barrier()
    ranks.agree(None)
    with pytest.raises(Interrupted):
        ranks.agree(Interrupted(Cause.PREEMPTED))
    with pytest.raises(ValueError, match="mine"):
        ranks.agree(ValueError("mine"))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
