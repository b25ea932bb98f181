import numpy as np
import pytest

from salon.errors import InvalidRequest, Overloaded, SharedFileUnavailable
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.batches import score_frames
from salon.wire.images import ImageLimits, decode
from salon.wire.shared_files import SharedDirectory
from tests.salon.files import encoded, noise

LIMITS = ImageLimits()


def requests_of(*arguments, **options):
    """The requests, as any receiver reads them."""
    frames = list(score_frames(*arguments, **options))
    requests = [pb.ScoreRequest.FromString(frame.payload) for frame in frames]
    assert [frame.samples for frame in frames] == [len(request.samples) for request in requests]
    return requests


def pixels(image):
    return decode(image, image.data, LIMITS)


def test_every_sample_is_there_once_in_order_and_within_both_limits() -> None:
    images = [noise(1 + seed % 40, 16, seed=seed) for seed in range(100)]
    prompts = [f"prompt {seed}" * (seed % 7) for seed in range(100)]
    metadata = [{"seed": seed} for seed in range(100)]
    requests = requests_of("mean", images, prompts, metadata, 8000, 9)
    samples = [sample for request in requests for sample in request.samples]
    for sample, image, prompt, seed in zip(samples, images, prompts, range(100), strict=True):
        np.testing.assert_array_equal(pixels(sample.image), image)
        assert (sample.prompt, sample.metadata["seed"]) == (prompt, seed)
    assert {request.reward for request in requests} == {"mean"}
    assert max(request.ByteSize() for request in requests) <= 8000
    assert max(len(request.samples) for request in requests) == 9


def test_messages_are_filled() -> None:
    # 100 images of 768 bytes and 16 KB a message: 20 fit, by bytes alone.
    images = np.zeros((100, 16, 16, 3), np.uint8)
    sizes = [len(request.samples) for request in requests_of("", images, None, None, 16_000)]
    assert sizes == [20] * 5


def test_a_sample_that_just_fits_is_sent_and_one_that_does_not_is_refused() -> None:
    image = noise(100, 100)
    [request] = requests_of("r", [image])
    largest = request.ByteSize() + 100
    assert len(requests_of("r", [image, image], None, None, largest)) == 2
    with pytest.raises(InvalidRequest, match=r"sample 1 takes 30\d\d\d bytes.*PNG"):
        list(score_frames("r", [noise(2, 2), image], None, None, 30_000))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (([],), "empty"),
        ((np.zeros((0, 8, 8, 3), np.uint8),), "empty"),
        (([noise()], ["a", "b"]), "1 images but 2 prompts"),
        (([noise()] * 3, "a b"), r"prompts must be a list.*\['a b'\]"),
        (([noise()], None, [{}, {}]), "1 images but 2 metadata"),
    ],
)
def test_counts_that_differ_are_refused_at_once(arguments: tuple[object, ...], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        score_frames("", *arguments)


@pytest.mark.parametrize(
    ("prompt", "metadata", "word"),
    [
        (7, {}, "prompt 1"),
        ("\ud800", {}, "prompt 1"),
        ("a", {"x": object()}, "metadata 1"),
        ("a", "seed", "metadata 1"),
    ],
)
def test_a_prompt_or_mapping_that_cannot_be_sent_is_named(
    prompt: object, metadata: object, word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        list(score_frames("", [encoded(noise())] * 2, ["a", prompt], [{}, metadata]))


def test_references_and_the_instance_travel_with_the_images() -> None:
    images, references = ([noise(seed=seed) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    requests = requests_of("r", images, None, None, 1300, references=references, instance="job-7")
    assert [request.instance for request in requests] == ["job-7", "job-7"]
    for image, reference, request in zip(images, references, requests, strict=True):
        [sample] = request.samples
        np.testing.assert_array_equal(pixels(sample.image), image)
        np.testing.assert_array_equal(pixels(sample.reference), reference)
    with pytest.raises(InvalidRequest, match="2 images but 1 references"):
        score_frames("r", images, references=references[:1])
    with pytest.raises(InvalidRequest, match="reference 1 has shape"):
        list(score_frames("r", images, references=[noise(), noise(channels=4)]))


@pytest.fixture
def shared(tmp_path):
    return SharedDirectory(tmp_path)


def test_of_samples_in_one_batch_some_may_have_metadata_or_a_reference(shared) -> None:
    images = [noise(seed=seed) for seed in range(3)]
    target = noise(seed=9)
    arguments = ("r", images, None, [None, {}, {"a": 1}])
    references = [None, target, None]
    [request] = requests_of(*arguments, references=references)
    present = [(s.HasField("metadata"), s.HasField("reference")) for s in request.samples]
    assert present == [(False, False), (True, True), (True, False)]
    np.testing.assert_array_equal(pixels(request.samples[1].reference), target)
    [frame] = score_frames(*arguments, references=references, shared=shared)
    assert pb.ScoreRequest.FromString(frame.inline()) == request


def test_by_reference_the_pixels_lie_in_one_file_a_request(shared, tmp_path) -> None:
    images = [noise(1 + seed % 9, seed=seed) for seed in range(20)]
    references = [encoded(noise(seed=seed)) for seed in range(20)]
    prompts = [str(seed) for seed in range(20)]
    arguments = ("r", images, prompts, None, 5000)
    inline = requests_of(*arguments, references=references)
    frames = list(score_frames(*arguments, references=references, shared=shared))
    assert len(frames) == len(list(tmp_path.glob("salon-batch-*"))) > 2
    for frame, expected in zip(frames, inline, strict=True):
        assert len(frame.payload) < 100 + 100 * frame.samples
        request = pb.ScoreRequest.FromString(frame.payload)
        assert request.shared_file == frame.shared_file.path.name
        assert {sample.image.WhichOneof("source") for sample in request.samples} == {"slice"}
        # And it may be sent inline after all.
        assert pb.ScoreRequest.FromString(frame.inline()) == expected
        assert len(frame.inline()) <= 5000
        frame.delete_file()
    assert list(tmp_path.glob("salon-batch-*")) == []


@pytest.mark.parametrize("size", [1, 20])
def test_by_reference_small_images_keep_the_limits_as_well(shared, size) -> None:
    images = np.zeros((1500, size, 1, 1), np.uint8)
    frames = list(score_frames("r", images, None, None, 4096, shared=shared))
    assert sum(frame.samples for frame in frames) == 1500
    assert max(len(frame.payload) for frame in frames) <= 4096


class Broken(SharedDirectory):
    """Takes one file, and no other."""

    def __init__(self, root, error):
        super().__init__(root)
        self._error = error

    def write(self, buffers):
        if any(self._root.glob("salon-batch-*")):
            raise self._error
        return super().write(buffers)


@pytest.mark.parametrize("error", [Overloaded("no room"), SharedFileUnavailable("broken")])
def test_when_the_directory_takes_no_more_pixels_travel_inline(tmp_path, error) -> None:
    images = [noise(seed=seed) for seed in range(3)]
    first, *others = score_frames("r", images, max_samples=1, shared=Broken(tmp_path, error))
    assert first.shared_file
    for frame, image in zip(others, images[1:], strict=True):
        assert frame.shared_file is None
        [sample] = pb.ScoreRequest.FromString(frame.payload).samples
        np.testing.assert_array_equal(pixels(sample.image), image)
