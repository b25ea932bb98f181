"""What calls to learned rewards are counted as."""

from contextlib import closing

import grpc
import pytest

from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1 import reward_pb2
from salon.reward.v1.learned_reward_pb2_grpc import LearnedRewardServiceStub
from tests.fixtures.service import wait_until
from tests.services.learned.learning import SMALL, discriminator, fit, images


@pytest.fixture
def reward(tmp_path):
    """A discriminator without instances."""
    with closing(discriminator(tmp_path)) as reward:
        yield reward


@pytest.fixture
def counted(metrics):
    """The value of a counter of the discriminator; `counted(name, **labels)`."""
    return lambda name, **labels: metrics.registry.get_sample_value(
        f"salon_inference_{name}_total", {"reward": "discriminator"} | labels
    )


def request(**image):
    return wire.FitRequest(
        instance="job",
        request_id="a",
        examples=[
            wire.Example(
                labelled=wire.LabelledSample(
                    sample=reward_pb2.Sample(image=reward_pb2.Image(**image)),
                    origin=wire.ORIGIN_REAL,
                )
            )
        ],
    )


def test_bytes_are_counted_as_read_and_not_as_claimed(channel, counted):
    stub = LearnedRewardServiceStub(channel)
    endless = request(
        format=reward_pb2.IMAGE_FORMAT_GRAY8, slice=reward_pb2.Slice(offset=0, length=2**63)
    )
    with pytest.raises(grpc.RpcError, match="a slice, but the call names no file"):
        stub.Fit(endless, timeout=30)
    assert (counted("image"), counted("image_bytes")) == (0, 0)
    [image] = images(1, 0, 256)
    real = request(format=reward_pb2.IMAGE_FORMAT_GRAY8, width=16, height=16, data=image.tobytes())
    real.hyperparameters.update(SMALL)
    stub.Fit(real, timeout=30)
    # A repeat is answered without being read.
    stub.Fit(real, timeout=30)
    assert (counted("image"), counted("image_bytes")) == (1, 256)


def test_an_export_counts_as_it_ended(channel, counted, reward):
    fit(reward, "job", [], steps=0, **SMALL | {"base_width": 256})
    stub = LearnedRewardServiceStub(channel)
    # Of 8 MB, more than a connection holds, one piece is read.
    left = stub.Export(wire.ExportRequest(instance="job"))
    assert next(left).version
    assert counted("request", code="OK") == 0, "it is under way"
    left.cancel()
    wait_until(lambda: counted("request", code="DEADLINE_EXCEEDED") == 1, "the caller left")
    assert len(list(stub.Export(wire.ExportRequest(instance="job"), timeout=30))) > 2
    wait_until(lambda: counted("request", code="OK") == 1, "the last piece went")
    with pytest.raises(grpc.RpcError):
        list(stub.Export(wire.ExportRequest(instance="nobody"), timeout=30))
    assert counted("request", code="NOT_FOUND") == 1


def test_an_import_counts_for_the_reward_that_its_first_piece_names(channel, counted):
    pieces = [wire.ImportRequest(reward="discriminator", instance="job", data=b"noise")]
    with pytest.raises(grpc.RpcError):
        LearnedRewardServiceStub(channel).Import(iter(pieces), timeout=30)
    assert counted("request", code="INVALID_ARGUMENT") == 1
