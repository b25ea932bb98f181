"""Callers who hold an export or an import open and do nothing."""

import threading
from contextlib import closing

import grpc
import pytest

from salon.errors import Overloaded, from_rpc_error
from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1.learned_reward_pb2_grpc import LearnedRewardServiceStub
from services.learned import transfers
from tests.fixtures.service import wait_until
from tests.services.learned.learning import SMALL, discriminator, fit, light_is_real

EXPORT = wire.ExportRequest(instance="job")


@pytest.fixture
def reward(tmp_path):
    """A discriminator with an instance whose export, 8 MB, is more than a connection holds."""
    with closing(discriminator(tmp_path)) as reward:
        fit(reward, "job", light_is_real(4), steps=0, **SMALL | {"base_width": 256})
        yield reward


@pytest.fixture
def stub(channel):
    return LearnedRewardServiceStub(channel)


@pytest.fixture
def silent(stub):
    """Begin an import that sends nothing; `silent()`."""
    stop = threading.Event()

    def pieces():
        stop.wait(30)
        yield from ()

    calls = []

    def begin():
        calls.append(stub.Import.future(pieces()))
        return calls[-1]

    yield begin
    stop.set()
    for call in calls:
        call.cancel()


def is_refused(stub):
    try:
        list(stub.Export(EXPORT, timeout=30))
    except grpc.RpcError:
        return True
    return False


def test_silent_imports_take_no_more_than_their_places_and_lose_them(stub, silent, monkeypatch):
    monkeypatch.setattr(transfers, "IDLE_SECONDS", 1.0)
    calls = [silent() for _ in range(transfers.MOST_AT_ONCE + 1)]
    wait_until(lambda: any(call.done() for call in calls), "one is turned away")
    [refused] = [call for call in calls if call.done()]
    error = from_rpc_error(refused, "here")
    assert isinstance(error, Overloaded)
    assert error.retry_after_seconds == transfers.RETRY_SECONDS
    # A call that moves no instance needs no such place.
    fitted = stub.Fit(wire.FitRequest(instance="job", request_id="a"), timeout=30)
    assert fitted.version.startswith("1+job@2-")
    calls.remove(refused)
    assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}
    wait_until(lambda: not is_refused(stub), "the places are free again")


def test_an_export_that_nobody_reads_loses_its_place(stub, admission, monkeypatch):
    monkeypatch.setattr(transfers, "IDLE_SECONDS", 0.5)
    unread = [stub.Export(EXPORT) for _ in range(transfers.MOST_AT_ONCE)]
    for call in unread:
        assert next(call).version.startswith("1+job@1-")
    wait_until(lambda: not is_refused(stub), "the places are free again")
    assert admission.close(30) == 0
    for call in unread:
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_whoever_moves_on_is_not_cut_off_however_long_it_takes(stub, reward, monkeypatch):
    monkeypatch.setattr(transfers, "IDLE_SECONDS", 1.0)
    data = reward.export("job").data
    pause = threading.Event()

    def pieces():
        for start in range(0, len(data), 1024 * 1024):
            pause.wait(0.15)
            yield wire.ImportRequest(instance="copy", data=data[start : start + 1024 * 1024])

    assert stub.Import(pieces(), timeout=30).version.startswith("1+copy@1-")
    taken = bytearray()
    for piece in stub.Export(EXPORT, timeout=30):
        pause.wait(0.15)
        taken += piece.data
    assert taken == data


def test_a_silent_import_is_turned_away_before_it_sends_anything(silent, admission):
    admission.close(0)
    call = silent()
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert "the service is draining" in call.details()
