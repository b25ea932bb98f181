"""A batch of any size as a series of bounded ScoreRequests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from salon.channel import MAX_MESSAGE_BYTES
from salon.errors import InvalidRequest
from salon.images import ImageBatch, encode
from salon.reward.v1 import reward_pb2
from salon.structs import to_struct

MAX_SAMPLES = 1024
"""Most samples in one request, unless the service says otherwise."""

_SAMPLE_OVERHEAD = 16
"""Upper bound on the bytes that frame one sample: a field tag and its length."""


def score_requests(
    reward: str,
    images: ImageBatch,
    prompts: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_samples: int = MAX_SAMPLES,
) -> Iterator[reward_pb2.ScoreRequest]:
    """Requests that hold all samples in order, each within both limits, made one at a time.

    Args:
        reward: the reward's name; empty for the service's default reward.
        images: N images; see `salon.images.ImageBatch`.
        prompts: N prompts, or None.
        metadata: N mappings of JSON-like values, or None.
        max_message_bytes: largest serialized request.
        max_samples: most samples in a request.

    Raises:
        InvalidRequest: no images, counts that differ, an image, prompt or mapping that cannot be
            sent, or one sample larger than `max_message_bytes`. Counts are checked at the call,
            each sample when its turn comes.
    """
    if len(images) == 0:
        raise InvalidRequest("the batch is empty: pass at least one image")
    if isinstance(prompts, str):
        raise InvalidRequest(f"prompts must be a list of strings; for one pass [{prompts[:40]!r}]")
    for name, values in (("prompts", prompts), ("metadata", metadata)):
        if values is not None and len(values) != len(images):
            raise InvalidRequest(
                f"{len(images)} images but {len(values)} {name}: pass one for each image"
            )
    samples = _samples(images, prompts, metadata)
    return _chunks(reward, samples, max_message_bytes, max_samples)


def _samples(
    images: ImageBatch,
    prompts: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any]] | None,
) -> Iterator[reward_pb2.Sample]:
    for index, image in enumerate(encode(images)):
        sample = reward_pb2.Sample(image=image)
        if prompts is not None:
            try:
                sample.prompt = prompts[index]
            except (TypeError, ValueError) as error:
                raise InvalidRequest(f"prompt {index} cannot be sent: {error}") from None
        if metadata is not None:
            try:
                sample.metadata.CopyFrom(to_struct(metadata[index]))
            except (TypeError, ValueError, AttributeError) as error:
                raise InvalidRequest(f"metadata {index} cannot be sent: {error}") from None
        yield sample


def _chunks(
    reward: str, samples: Iterator[reward_pb2.Sample], max_message_bytes: int, max_samples: int
) -> Iterator[reward_pb2.ScoreRequest]:
    request = reward_pb2.ScoreRequest(reward=reward)
    empty_size = size = request.ByteSize()
    for index, sample in enumerate(samples):
        sample_size = sample.ByteSize() + _SAMPLE_OVERHEAD
        if empty_size + sample_size > max_message_bytes:
            raise InvalidRequest(
                f"sample {index} takes {sample_size} bytes, more than a message may hold "
                f"({max_message_bytes}): send the image as PNG bytes, "
                "or raise max_message_bytes here and at the service"
            )
        full = size + sample_size > max_message_bytes or len(request.samples) >= max_samples
        if request.samples and full:
            yield request
            request, size = reward_pb2.ScoreRequest(reward=reward), empty_size
        request.samples.append(sample)
        size += sample_size
    yield request
