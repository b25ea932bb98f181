"""Learned rewards in services of their own: over the wire, killed, moved, cut off."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import grpc
import pytest

from salon import InvalidRequest, SalonError
from salon.client import LearnedRewardClient, labelled
from salon.errors import UnknownInstance, UnknownReward, VersionMismatch
from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1 import reward_pb2
from salon.reward.v1.learned_reward_pb2_grpc import LearnedRewardServiceStub
from salon.wire.shared_files import SharedDirectory
from tests.fixtures.service import Service, wait_until
from tests.services.learned.learning import SMALL, images


@pytest.fixture
def serve(start_service, tmp_path):
    """Start a service on one and the same state directory, and a client of it; `serve()`."""
    clients = []

    def start():
        service = start_service("discriminator", "--set", f"state_dir={tmp_path}")
        clients.append(LearnedRewardClient(service.target))
        return service, clients[-1]

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def shared_dir(tmp_path_factory):
    """What the service of `client` shares with its callers."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def client(tmp_path_factory, shared_dir):
    """A client of one service, for tests that do not harm it and use names of their own."""
    folder = tmp_path_factory.mktemp("learned")
    flags = ("--set", f"state_dir={folder}", "--shared-dir", str(shared_dir))
    service = Service(folder / "service.log", "discriminator", *flags)
    with LearnedRewardClient(service.target) as client:
        yield client
    assert service.stop() == 0


def examples(count=16):
    return list(
        chain(
            labelled(images(count, 140, 256), real=True),
            labelled(images(count, 0, 116, seed=1), real=False),
        )
    )


def score(client, instance):
    return [outcome.score for outcome in client.score(images(3, 0, 256), instance=instance)]


def is_busy(client, instance):
    """Whether another call holds the instance."""
    request = wire.ExportRequest(instance=instance)
    with grpc.insecure_channel(client.target) as channel:
        try:
            list(LearnedRewardServiceStub(channel).Export(request, timeout=0.3))
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return False


def test_an_export_goes_on_in_another_process_bit_by_bit(client, serve):
    first = client.fit("moved", examples(40), 3, hyperparameters=SMALL)
    exported = client.export("moved")
    assert exported.version == first.version
    _, other = serve()
    assert other.import_("moved", exported.data) == first.version
    fits = [
        one.fit("moved", examples(5), 3, request_id="next", base_version=first.version)
        for one in (client, other)
    ]
    assert fits[0] == fits[1]
    assert client.export("moved") == other.export("moved")
    assert score(client, "moved") == score(other, "moved")
    [outcome] = other.score(images(1, 0, 9), instance="moved")
    assert outcome.version == fits[1].version != first.version


def test_a_stop_keeps_everything_and_a_kill_in_a_fit_keeps_what_was_on_disk_whole(serve, tmp_path):
    service, client = serve()
    client.fit("job", examples(), 2, hyperparameters=SMALL | {"base_width": 64})
    exported, before = client.export("job"), score(client, "job")
    assert service.stop() == 0

    service, client = serve()
    assert client.export("job") == exported
    assert score(client, "job") == before
    lost = client.fit("lost", examples(), 1, hyperparameters=SMALL).version
    with ThreadPoolExecutor(1) as pool:
        long_fit = pool.submit(client.fit, "job", [], 1000, deadline=3)
        wait_until(lambda: is_busy(client, "job"), "the fit is under way")
        service.kill()
        with pytest.raises(SalonError):
            long_fit.result()
    assert (tmp_path / "discriminator" / "job.safetensors").read_bytes() == exported.data

    _, client = serve()
    assert client.export("job") == exported
    fitted = client.fit("job", [], 1, base_version=exported.version)
    assert fitted.version.startswith("1+job@2-")
    with pytest.raises(UnknownInstance, match="has no instance lost, it has job; fits since"):
        score(client, "lost")
    with pytest.raises(UnknownInstance, match="import it from its last export"):
        client.fit("lost", examples(), 1, base_version=lost)


def test_images_may_lie_in_a_shared_file(client, shared_dir):
    inline = client.fit("inline", examples(), 2, hyperparameters=SMALL)
    request = wire.FitRequest(instance="sliced", request_id="a", steps=2, examples=examples())
    request.hyperparameters.update(SMALL)
    found = [example.labelled.sample.image for example in request.examples]
    file = SharedDirectory(shared_dir).write([image.data for image in found])
    request.shared_file = file.path.name
    for image, offset in zip(found, file.offsets, strict=True):
        image.slice.CopyFrom(reward_pb2.Slice(offset=offset, length=256))
    with grpc.insecure_channel(client.target) as channel:
        response = LearnedRewardServiceStub(channel).Fit(request, timeout=60)
    # The same weights under another name.
    assert response.version.rsplit("-")[-1] == inline.version.rsplit("-")[-1]


def test_a_shared_file_is_not_read_for_an_instance_that_is_not_there(client):
    with pytest.raises(grpc.RpcError) as caught:
        raw(client, shared_file="missing", base_version="1+raw@1-00000000")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "has no instance raw" in caught.value.details()


def test_a_fit_on_another_version_and_an_unknown_reward_are_told_apart(client):
    client.fit("versions", examples(), 1, hyperparameters=SMALL)
    with pytest.raises(VersionMismatch, match="FAILED_PRECONDITION: instance versions is at"):
        client.fit("versions", [], 1, base_version="1+versions@7-00000000")
    with pytest.raises(UnknownReward, match="no learned reward 'beauty' here"):
        client.export("versions", reward="beauty")
    with pytest.raises(UnknownInstance, match="scores by instance: name one"):
        client.score(images(1, 0, 9))
    with pytest.raises(InvalidRequest, match="instance 'a b' must be 1 to 64 letters"):
        client.score(images(1, 0, 9), instance="a b")


def raw(client, **changes):
    request = wire.FitRequest(instance="raw", request_id="a", steps=1, examples=examples(2))
    request.hyperparameters.update(SMALL)
    request.MergeFrom(wire.FitRequest(**changes))
    with grpc.insecure_channel(client.target) as channel:
        return LearnedRewardServiceStub(channel).Fit(request, timeout=30)


def bad_examples():
    sample = examples(1)[0].labelled.sample
    short = reward_pb2.Sample()
    short.CopyFrom(sample)
    short.image.data = b"short"
    half = wire.Comparison(first=sample, second=sample, preference=float("nan"))
    return {
        "neither labelled nor a comparison": wire.Example(),
        "needs INPUT_IMAGE": wire.Example(labelled=wire.LabelledSample(origin=wire.ORIGIN_REAL)),
        "origin 0 is neither": wire.Example(labelled=wire.LabelledSample(sample=sample)),
        "preference nan is no probability": wire.Example(comparison=half),
        "got 5": wire.Example(labelled=wire.LabelledSample(sample=short, origin=wire.ORIGIN_REAL)),
    }


@pytest.mark.parametrize("words", bad_examples().keys())
def test_one_bad_example_is_named_and_none_is_taken(client, words):
    with pytest.raises(grpc.RpcError, match=f"example 4: .*{words}.*; none was taken") as caught:
        raw(client, examples=[bad_examples()[words]])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(UnknownInstance):
        client.export("raw")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"request_id": "a" * 129}, "request_id must be 1 to 128 characters, it is 129"),
        ({"examples": examples(1) * 600}, "more than 1024 examples in one call: split"),
        ({"shared_file": "batch"}, "shared_file batch: No such file"),
        ({"instance": "../up"}, "must be 1 to 64 letters"),
    ],
)
def test_a_request_out_of_bounds_is_refused(client, changes, words):
    with pytest.raises(grpc.RpcError, match=words):
        raw(client, **changes)


def test_large_exports_travel_in_pieces(client):
    hyperparameters = SMALL | {"base_width": 128}
    client.fit("large", examples(), 0, hyperparameters=hyperparameters)
    with grpc.insecure_channel(client.target) as channel:
        stub = LearnedRewardServiceStub(channel)
        request = wire.ExportRequest(instance="large")
        pieces = [len(piece.data) for piece in stub.Export(request, timeout=30)]
    data = client.export("large").data
    assert sum(pieces) == len(data) > 2 * 1024 * 1024
    assert max(pieces) == 1024 * 1024
    assert client.import_("larger", data)
    client.delete("large")
    with pytest.raises(UnknownInstance):
        client.export("large")
