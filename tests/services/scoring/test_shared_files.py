"""Images that lie in a directory the service shares with its callers."""

import grpc
import pytest

from salon.errors import InvalidRequest, SharedFileUnavailable, from_rpc_error
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.shared_files import SharedDirectory
from tests.salon.files import encoded, noise

PIXELS = noise(20, 30)
SCORE = -len(encoded(PIXELS, "JPEG", quality=95)) / 1000


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shared"


@pytest.fixture
def service(start_service, folder):
    return start_service("jpeg", "--shared-dir", str(folder))


def sliced(offset, length, **image):
    fields = {"format": pb.IMAGE_FORMAT_RGB8, "height": 20, "width": 30} | image
    return pb.Sample(image=pb.Image(slice=pb.Slice(offset=offset, length=length), **fields))


def error_of(service, stub, request):
    with pytest.raises(grpc.RpcError) as caught:
        stub(service).Score(request)
    return from_rpc_error(caught.value, service.target)


def test_slices_of_a_shared_file_score_as_inline_pixels_do(service, folder, stub):
    png = encoded(PIXELS)
    file = SharedDirectory(folder).write([PIXELS.tobytes(), png])
    raw, encoded_at = file.offsets
    samples = [
        sliced(raw, PIXELS.size),
        sliced(encoded_at, len(png), format=pb.IMAGE_FORMAT_PNG),
        pb.Sample(image=pb.Image(format=pb.IMAGE_FORMAT_PNG, data=png)),
    ]
    request = pb.ScoreRequest(samples=samples, shared_file=file.path.name)
    assert [outcome.score for outcome in stub(service).Score(request).outcomes] == [SCORE] * 3


def test_a_slice_outside_the_file_fails_alone(service, folder, stub):
    file = SharedDirectory(folder).write([PIXELS.tobytes()])
    samples = [
        sliced(1, PIXELS.size),
        sliced(PIXELS.size + 1, 0),
        sliced(2**63, 2**63),
        sliced(0, PIXELS.size - 1),
        sliced(0, PIXELS.size),
    ]
    response = stub(service).Score(pb.ScoreRequest(samples=samples, shared_file=file.path.name))
    *bad, good = response.outcomes
    assert {outcome.error.code for outcome in bad} == {pb.ERROR_CODE_INVALID_IMAGE}
    assert f"a shared file of {PIXELS.size} bytes" in bad[0].error.message
    assert good.score == SCORE


def test_a_slice_without_a_file_fails_alone(jpeg_service, stub):
    response = stub(jpeg_service).Score(pb.ScoreRequest(samples=[sliced(0, PIXELS.size)]))
    assert response.outcomes[0].error.code == pb.ERROR_CODE_INVALID_IMAGE
    assert "set ScoreRequest.shared_file" in response.outcomes[0].error.message


def test_a_file_the_service_cannot_see_fails_the_call(service, jpeg_service, stub):
    request = pb.ScoreRequest(samples=[sliced(0, PIXELS.size)], shared_file="gone")
    missing = error_of(service, stub, request)
    assert isinstance(missing, SharedFileUnavailable)
    unshared = error_of(jpeg_service, stub, request)
    assert isinstance(unshared, SharedFileUnavailable)
    assert "--shared-dir" in str(unshared)


def test_a_name_that_leads_out_of_the_directory_is_refused(service, folder, stub):
    (folder.parent / "secret").write_bytes(PIXELS.tobytes())
    request = pb.ScoreRequest(samples=[sliced(0, PIXELS.size)], shared_file="../secret")
    assert isinstance(error_of(service, stub, request), InvalidRequest)


def test_callers_are_told_how_to_know_the_directory(service, jpeg_service, folder, stub):
    limits = stub(service).GetReward(pb.GetRewardRequest()).reward.limits
    assert (folder / limits.shared_marker).is_file()
    assert SharedDirectory(folder).sees(limits.shared_marker)
    assert not stub(jpeg_service).GetReward(pb.GetRewardRequest()).reward.limits.shared_marker
