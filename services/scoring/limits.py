"""What one server accepts, and how much of it is scored at once."""

from dataclasses import dataclass, field

from salon.reward.v1 import reward_pb2
from salon.wire.images import ImageLimits
from salon.wire.limits import (
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_PROMPT_BYTES,
    MAX_SAMPLES,
)

LARGE_WAITING = 8
"""Most calls that wait for room for a large image, unless a service is told otherwise."""


@dataclass(frozen=True)
class Limits:
    """Bounds on a call (samples, message) and on a sample (image, prompt, metadata)."""

    max_samples: int = MAX_SAMPLES
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_prompt_bytes: int = MAX_PROMPT_BYTES
    """Of the prompt in UTF-8."""
    max_metadata_bytes: int = MAX_METADATA_BYTES
    """Of a sample's metadata, as serialized."""
    image: ImageLimits = field(default_factory=ImageLimits)

    def message(self, shared_marker: str = "") -> reward_pb2.Limits:
        """These limits as clients are told them, with the marker of the directory they share."""
        return reward_pb2.Limits(
            max_samples=self.max_samples,
            max_message_bytes=self.max_message_bytes,
            max_image_side=self.image.max_side,
            max_image_pixels=self.image.max_pixels,
            max_prompt_bytes=self.max_prompt_bytes,
            shared_marker=shared_marker,
        )


@dataclass(frozen=True)
class BatchLimits:
    """How batches are formed, and how many samples may wait."""

    max_batch: float
    """Most samples in a batch, in units of `Reward.cost`."""
    max_delay_seconds: float
    """How long a batch that is not full waits for more while nothing is being scored."""
    max_pending: int
    """Most samples of the calls in progress; further calls are refused."""
