import numpy as np
import pytest

from salon.batches import score_requests
from salon.errors import InvalidRequest
from salon.images import ImageLimits, decode
from tests.salon.files import encoded, noise


def test_every_sample_is_there_once_in_order_and_within_both_limits() -> None:
    images = [noise(1 + seed % 40, 16, seed=seed) for seed in range(100)]
    prompts = [f"prompt {seed}" * (seed % 7) for seed in range(100)]
    metadata = [{"seed": seed} for seed in range(100)]
    requests = list(score_requests("mean", images, prompts, metadata, 8000, 9))
    samples = [sample for request in requests for sample in request.samples]
    for sample, image, prompt, seed in zip(samples, images, prompts, range(100), strict=True):
        np.testing.assert_array_equal(decode(sample.image, ImageLimits()), image)
        assert (sample.prompt, sample.metadata["seed"]) == (prompt, seed)
    assert {request.reward for request in requests} == {"mean"}
    assert max(request.ByteSize() for request in requests) <= 8000
    assert max(len(request.samples) for request in requests) == 9


def test_messages_are_filled() -> None:
    # 100 images of 768 bytes and 16 KB a message: 20 fit, by bytes alone.
    sizes = [
        len(request.samples)
        for request in score_requests("", np.zeros((100, 16, 16, 3), np.uint8), None, None, 16_000)
    ]
    assert sizes == [20] * 5


def test_a_sample_that_just_fits_is_sent_and_one_that_does_not_is_refused() -> None:
    image = noise(100, 100)
    [request] = score_requests("r", [image])
    largest = request.ByteSize() + 16
    assert len(list(score_requests("r", [image, image], None, None, largest))) == 2
    with pytest.raises(InvalidRequest, match=r"sample 1 takes 30\d\d\d bytes.*PNG"):
        list(score_requests("r", [noise(2, 2), image], None, None, 30_000))


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
        score_requests("", *arguments)


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
        list(score_requests("", [encoded(noise())] * 2, ["a", prompt], [{}, metadata]))
