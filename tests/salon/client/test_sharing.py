"""Images by reference, between a client and a service that share a directory, or do not."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from salon import InvalidRequest, RewardClient
from salon.client.reward_client import IN_FLIGHT
from salon.errors import DeadlineExceeded
from salon.reward.v1 import reward_pb2, reward_pb2_grpc
from salon.wire.shared_files import SharedDirectory
from tests.fixtures.service import wait_until
from tests.salon.files import encoded, noise

IMAGES = [noise(20 + seed, 30, seed=seed) for seed in range(10)]
EXPECTED = [-len(encoded(image, "JPEG", quality=95)) / 1000 for image in IMAGES]
SMALL = ("--max-message-bytes", "8000")  # several messages for one batch


@pytest.fixture
def root(tmp_path):
    return tmp_path / "shared"


def scores(client, images=IMAGES):
    return [outcome.score for outcome in client.score(images)]


def left_in(root):
    return [path.name for path in root.iterdir() if path.name.startswith("salon-batch-")]


def test_arrays_and_files_are_scored_by_reference(start_service, root):
    service = start_service("jpeg", "--shared-dir", str(root), *SMALL)
    with RewardClient(service.target, shared_dir=root) as client:
        assert client.describe().limits.shared_marker in {path.name for path in root.iterdir()}
        assert scores(client) == EXPECTED
        assert scores(client, [encoded(image) for image in IMAGES]) == EXPECTED
        assert client._unshared == set()
    assert left_in(root) == []


def test_a_service_elsewhere_gets_the_pixels_inline(start_service, root, tmp_path, jpeg_service):
    other = start_service("jpeg", "--shared-dir", str(tmp_path / "other"))
    for target in (other.target, jpeg_service.target):
        with RewardClient(target, shared_dir=root) as client:
            assert scores(client) == EXPECTED
    assert left_in(root) == []


def test_a_service_that_lost_sight_of_the_directory_gets_the_pixels_inline(start_service, root):
    service = start_service("jpeg", "--shared-dir", str(root), *SMALL)
    with RewardClient(service.target, shared_dir=root) as client:
        assert scores(client) == EXPECTED
        service.kill()
        start_service("jpeg", *SMALL, port=service.port)
        assert scores(client) == EXPECTED
        assert client._unshared == {""}
        assert scores(client) == EXPECTED
    assert left_in(root) == []


def test_files_are_there_while_they_are_scored_and_gone_when_that_fails(
    start_service, root, tmp_path
):
    service = start_service("tests.services.faulty", "--shared-dir", str(root), *SMALL)
    waits = [{"folder": str(tmp_path), "wait": True}] * 10
    prompts = [str(number) for number in range(10)]
    with RewardClient(service.target, shared_dir=root) as client, ThreadPoolExecutor(1) as pool:
        client.score(IMAGES[:1], ["first"], "patient", [{"folder": str(tmp_path)}])
        batch = pool.submit(client.score, IMAGES, prompts, "patient", waits, 4)
        wait_until(lambda: len(left_in(root)) == IN_FLIGHT, "several messages are on their way")
        with pytest.raises(DeadlineExceeded):
            batch.result()
        assert left_in(root) == []
        broken = [*IMAGES[:5], np.zeros((4, 4, 2), np.uint8)]
        with pytest.raises(InvalidRequest, match="image 5 has shape"):
            client.score(broken, prompts[:6], "patient", waits[:6])
    assert left_in(root) == []


@pytest.mark.parametrize(
    ("piece", "word"),
    [((0, 13), "shared file"), ((1, 11), "is 12 bytes, got 11"), ((2**63, 2**63), "shared file")],
)
def test_a_slice_that_is_not_in_the_file_fails_alone(start_service, root, piece, word):
    service = start_service("jpeg", "--shared-dir", str(root))
    file = SharedDirectory(root).write([bytes(12)])
    shape = {"format": reward_pb2.IMAGE_FORMAT_RGB8, "height": 2, "width": 2}
    request = reward_pb2.ScoreRequest(shared_file=file.path.name)
    for offset, length in ((0, 12), piece):
        image = reward_pb2.Image(slice=reward_pb2.Slice(offset=offset, length=length), **shape)
        request.samples.add(image=image)
    with RewardClient(service.target) as client:
        stub = reward_pb2_grpc.RewardServiceStub(client._channel)
        good, bad = stub.Score(request, timeout=10).outcomes
    assert good.score < 0
    assert bad.error.code == reward_pb2.ERROR_CODE_INVALID_IMAGE
    assert word in bad.error.message
