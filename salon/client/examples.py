"""What learned rewards learn from, as `LearnedRewardClient.fit` sends it."""

from collections.abc import Iterator, Sequence

from salon.errors import InvalidRequest
from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1 import reward_pb2
from salon.wire.images import ImageBatch, WireImage, encode


def labelled(
    images: ImageBatch, *, real: bool, references: ImageBatch | None = None
) -> Iterator[wire.Example]:
    """Examples for a discriminator.

    Args:
        images: N images; see `salon.wire.images.ImageBatch`.
        real: True: of the data that the generator should resemble; False: generated.
        references: for a conditional instance, N images that the images belong to.

    Raises:
        InvalidRequest: an image that cannot be sent, or another number of references.
    """
    origin = wire.ORIGIN_REAL if real else wire.ORIGIN_GENERATED
    if references is not None and len(references) != len(images):
        raise InvalidRequest(f"{len(images)} images but {len(references)} references")
    beside = None if references is None else encode(references, "reference")
    for image in encode(images):
        sample = _sample(image)
        if beside is not None:
            sample.reference.CopyFrom(_image(next(beside)))
        yield wire.Example(labelled=wire.LabelledSample(sample=sample, origin=origin))


def compared(
    first: ImageBatch, second: ImageBatch, preferences: Sequence[float]
) -> Iterator[wire.Example]:
    """Examples for a preference model.

    Args:
        first: N images.
        second: N images to compare them with.
        preferences: for each pair 1.0 if the first is preferred, 0.0 if the second is, 0.5 for a
            tie. Leave out pairs of which a judge likes neither.

    Raises:
        InvalidRequest: an image that cannot be sent, or numbers that differ.
    """
    if not len(first) == len(second) == len(preferences):
        raise InvalidRequest(
            f"{len(first)} first images, {len(second)} second ones and {len(preferences)} "
            "preferences: pass as many of each"
        )
    pairs = zip(encode(first, "first image"), encode(second, "second image"), strict=True)
    for (one, other), preference in zip(pairs, preferences, strict=True):
        comparison = wire.Comparison(
            first=_sample(one), second=_sample(other), preference=preference
        )
        yield wire.Example(comparison=comparison)


def _sample(image: WireImage) -> reward_pb2.Sample:
    return reward_pb2.Sample(image=_image(image))


def _image(image: WireImage) -> reward_pb2.Image:
    message = reward_pb2.Image(data=bytes(image.data))
    message.MergeFrom(image.message)
    return message
