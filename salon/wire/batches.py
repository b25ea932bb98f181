"""A batch of any size as a series of bounded ScoreRequests."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from salon.errors import InvalidRequest, Overloaded, SharedFileUnavailable
from salon.reward.v1 import reward_pb2
from salon.wire.frames import Frame, FramedSample, frame_sample, join
from salon.wire.images import ImageBatch, Pixels, WireImage, encode
from salon.wire.limits import MAX_MESSAGE_BYTES, MAX_SAMPLES
from salon.wire.shared_files import SharedDirectory
from salon.wire.structs import to_struct

log = logging.getLogger(__name__)

# Upper bounds on the bytes that a request gains by naming a shared file, and by a slice of it.
_NAME_BYTES = 64
_SLICE_BYTES = 24


def score_frames(
    reward: str,
    images: ImageBatch,
    prompts: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_samples: int = MAX_SAMPLES,
    *,
    references: ImageBatch | Sequence[Pixels | None] | None = None,
    instance: str = "",
    shared: SharedDirectory | None = None,
) -> Iterator[Frame]:
    """Requests that hold all samples in order, each within both limits, made one at a time.

    Args:
        reward: the reward's name; empty for the service's default reward.
        images: N images; see `salon.wire.images.ImageBatch`.
        prompts: N prompts, or None.
        metadata: N mappings of JSON-like values, or None; None for a sample that has none.
        max_message_bytes: largest serialized request; with `shared`, as if it held the images, so
            that each request may also be sent without.
        max_samples: most samples in a request.
        references: N images to compare with, or None; None for a sample that has none.
        instance: of a learned reward, which instance scores.
        shared: put the images' bytes into a file there for each request, as long as that works.
            Who takes a frame deletes its file.

    Raises:
        InvalidRequest: no images, counts that differ, an image, prompt or mapping that cannot be
            sent, or one sample larger than `max_message_bytes`. Counts are checked at the call,
            each sample when its turn comes.
    """
    if len(images) == 0:
        raise InvalidRequest("the batch is empty: pass at least one image")
    if isinstance(prompts, str):
        raise InvalidRequest(f"prompts must be a list of strings; for one pass [{prompts[:40]!r}]")
    given = (("prompts", prompts), ("metadata", metadata), ("references", references))
    for name, values in given:
        if values is not None and len(values) != len(images):
            raise InvalidRequest(
                f"{len(images)} images but {len(values)} {name}: pass one for each image"
            )
    request = reward_pb2.ScoreRequest(reward=reward, instance=instance)
    empty_size = request.ByteSize() + _NAME_BYTES
    samples = _samples(images, prompts, metadata, references)
    chunks = _chunks(empty_size, samples, max_message_bytes, max_samples)
    return (_frame(request, chunk, shared) for chunk in chunks)


@dataclass(frozen=True)
class _Sample:
    image: WireImage
    reference: WireImage | None
    rest: reward_pb2.Sample
    framed: FramedSample

    @property
    def images(self) -> list[WireImage]:
        return [self.image] if self.reference is None else [self.image, self.reference]


def _samples(
    images: ImageBatch,
    prompts: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any] | None] | None,
    references: ImageBatch | Sequence[Pixels | None] | None,
) -> Iterator[_Sample]:
    compared = _references(references)
    for index, image in enumerate(encode(images)):
        rest = reward_pb2.Sample()
        if prompts is not None:
            try:
                rest.prompt = prompts[index]
            except (TypeError, ValueError) as error:
                raise InvalidRequest(f"prompt {index} cannot be sent: {error}") from None
        if metadata is not None and (carried := metadata[index]) is not None:
            try:
                rest.metadata.CopyFrom(to_struct(carried))
            except (TypeError, ValueError, AttributeError) as error:
                raise InvalidRequest(f"metadata {index} cannot be sent: {error}") from None
        reference = None if compared is None else next(compared)
        yield _Sample(image, reference, rest, frame_sample(image, reference, rest))


def _references(
    references: ImageBatch | Sequence[Pixels | None] | None,
) -> Iterator[WireImage | None] | None:
    if references is None:
        return None
    if isinstance(references, list | tuple) and any(image is None for image in references):
        given = encode([image for image in references if image is not None], "reference")
        return (None if image is None else next(given) for image in references)
    return encode(cast("ImageBatch", references), "reference")


def _chunks(
    empty_size: int, samples: Iterator[_Sample], max_message_bytes: int, max_samples: int
) -> Iterator[list[_Sample]]:
    chunk: list[_Sample] = []
    size = empty_size
    for index, sample in enumerate(samples):
        # Whether it is sent inline or by reference: the slice of a tiny image is larger than it.
        gains = (max(0, _SLICE_BYTES - len(image.data)) for image in sample.images)
        sample_size = sample.framed.size + sum(gains)
        if empty_size + sample_size > max_message_bytes:
            image_bytes = sum(len(image.data) for image in sample.images)
            smaller = (
                "send the image as PNG bytes"
                if 2 * image_bytes > sample_size
                else f"its images take {image_bytes} of them, so send less metadata or prompt"
            )
            raise InvalidRequest(
                f"sample {index} takes {sample_size} bytes, more than a message may hold "
                f"({max_message_bytes}): {smaller}, or raise max_message_bytes here and at the "
                "service"
            )
        if chunk and (size + sample_size > max_message_bytes or len(chunk) >= max_samples):
            yield chunk
            chunk, size = [], empty_size
        chunk.append(sample)
        size += sample_size
    yield chunk


def _frame(
    request: reward_pb2.ScoreRequest,
    chunk: list[_Sample],
    shared: SharedDirectory | None,
) -> Frame:
    if shared is None:
        return Frame(join(request, [sample.framed for sample in chunk]), len(chunk))
    images = [image.data for sample in chunk for image in sample.images]
    try:
        shared_file = shared.write(images)
    except (Overloaded, SharedFileUnavailable) as error:
        log.warning("images are sent inline: %s", error)
        return _frame(request, chunk, None)
    offsets = iter(shared_file.offsets)
    sliced = reward_pb2.ScoreRequest()
    sliced.CopyFrom(request)
    sliced.shared_file = shared_file.path.name
    for sample in chunk:
        message = sliced.samples.add()
        message.CopyFrom(sample.rest)
        message.image.CopyFrom(_sliced(sample.image, next(offsets)))
        if sample.reference is not None:
            message.reference.CopyFrom(_sliced(sample.reference, next(offsets)))
    return Frame(sliced.SerializeToString(), len(chunk), shared_file)


def _sliced(image: WireImage, offset: int) -> reward_pb2.Image:
    sliced = reward_pb2.Image(slice=reward_pb2.Slice(offset=offset, length=len(image.data)))
    sliced.MergeFrom(image.message)
    return sliced
