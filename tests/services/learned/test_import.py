"""Imports that are too large, too short, or never end."""

import json
import threading
from contextlib import closing

import grpc
import pytest
import safetensors.torch
import torch

from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1 import learned_reward_pb2_grpc
from services.learned import transfers
from tests.fixtures.service import wait_until
from tests.services.learned.learning import SMALL, discriminator, fit, light_is_real


@pytest.fixture
def reward(tmp_path):
    """A discriminator with an instance `job`."""
    with closing(discriminator(tmp_path, max_instance_bytes=1024 * 1024)) as reward:
        fit(reward, "job", light_is_real(4), **SMALL)
        yield reward


@pytest.fixture
def import_(channel):
    return learned_reward_pb2_grpc.LearnedRewardServiceStub(channel).Import


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_more_than_an_instance_may_be_is_refused_before_all_of_it_is_taken(import_, reward):
    before = reward.export("job")
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield wire.ImportRequest(instance="job", data=bytes(256 * 1024))

    code, words = refused(lambda: import_(endless(), timeout=30))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the import is larger than 2097152 bytes" in words
    assert reward.export("job") == before


@pytest.mark.parametrize("kept", [0, 5000])
def test_part_of_an_export_is_refused_and_the_instance_stays(import_, reward, kept):
    before = reward.export("job")
    pieces = [wire.ImportRequest(instance="job", data=before.data[:kept])]
    code, words = refused(lambda: import_(iter(pieces[: kept or None]), timeout=30))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the {kept} bytes are no exported instance, or not all of one" in words
    assert reward.export("job") == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda bias: torch.full_like(bias, torch.nan), "NaN or infinity, as float32, in 1 weight"),
        (lambda bias: bias.long(), "is torch.int64, and the network's torch.float32"),
        (lambda bias: bias.double(), "is torch.float64, and the network's torch.float32"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_and_the_instance_stays(
    import_, reward, spoil, words
):
    before = reward.export("job")
    tensors = safetensors.torch.load(before.data)
    header = json.loads(before.data[8 : 8 + int.from_bytes(before.data[:8], "little")])
    name = next(name for name in tensors if name.startswith("network.") and "bias" in name)
    tensors[name] = spoil(tensors[name])
    data = safetensors.torch.save(tensors, header["__metadata__"])
    pieces = [wire.ImportRequest(instance="job", data=data)]
    code, told = refused(lambda: import_(iter(pieces), timeout=30))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in told
    assert reward.export("job") == before


def test_an_import_given_up_in_the_middle_changes_nothing(import_, reward, admission):
    before = reward.export("job")
    sent, stop = threading.Event(), threading.Event()

    def pieces():
        yield wire.ImportRequest(instance="job", data=before.data[:5000])
        sent.set()
        stop.wait(30)

    call = import_.future(pieces())
    wait_until(sent.is_set, "the first piece is sent")
    call.cancel()
    stop.set()
    assert admission.close(30) == 0
    assert reward.export("job") == before


def test_an_import_that_never_ends_is_cut_off(import_, reward, monkeypatch):
    monkeypatch.setattr(transfers, "IDLE_SECONDS", 0.3)
    before = reward.export("job")
    stop = threading.Event()

    def pieces():
        yield wire.ImportRequest(instance="job", data=before.data[:5000])
        stop.wait(30)

    code, _ = refused(lambda: import_(pieces(), timeout=20))
    stop.set()
    assert code is grpc.StatusCode.CANCELLED
    assert reward.export("job") == before


def test_no_pieces_at_all_are_refused(import_):
    code, words = refused(lambda: import_(iter([]), timeout=30))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "instance '' must be" in words
