"""From the samples of one call to samples that a reward can score."""

from salon.errors import SampleError
from salon.frames import ReceivedSample
from salon.images import Pixels, decode
from salon.reward.v1 import reward_pb2
from salon.structs import to_dict
from services.call import Call
from services.limits import Limits
from services.reward import Reward, Sample

RAW_FORMATS = (reward_pb2.IMAGE_FORMAT_RGB8, reward_pb2.IMAGE_FORMAT_GRAY8)


class SampleReader:
    """Reads the samples of one call to one reward."""

    def __init__(
        self, reward: Reward, limits: Limits, shared: memoryview | None, call: Call
    ) -> None:
        """Read what `reward` needs within `limits`, and count the images that `call` brought.

        `shared` is the call's shared file, if it has one.
        """
        self._reward = reward
        self._limits = limits
        self._shared = shared
        self._call = call

    def read(self, received: ReceivedSample) -> Sample:
        """The sample, checked and decoded; raw pixels stay where they are, uncopied.

        Raises:
            SampleError: it lacks something, or something in it cannot be used.
        """
        message = received.message
        prompt_bytes = len(message.prompt.encode())
        if prompt_bytes > self._limits.max_prompt_bytes:
            raise SampleError(
                reward_pb2.ERROR_CODE_PROMPT_TOO_LONG,
                f"the prompt is {prompt_bytes} bytes of UTF-8, at most "
                f"{self._limits.max_prompt_bytes} are accepted: shorten it",
            )
        metadata_bytes = message.metadata.ByteSize()
        if metadata_bytes > self._limits.max_metadata_bytes:
            raise SampleError(
                reward_pb2.ERROR_CODE_INVALID_SAMPLE,
                f"the metadata is {metadata_bytes} bytes, at most "
                f"{self._limits.max_metadata_bytes} are accepted: send less with each sample",
            )
        self._check_complete(message)
        reference = message.HasField("reference")
        return Sample(
            self._decode(message.image, received.image),
            message.prompt,
            to_dict(message.metadata),
            self._decode(message.reference, received.reference) if reference else None,
        )

    def _check_complete(self, message: reward_pb2.Sample) -> None:
        present = {
            reward_pb2.INPUT_IMAGE: message.HasField("image"),
            reward_pb2.INPUT_PROMPT: bool(message.prompt),
            reward_pb2.INPUT_METADATA: message.HasField("metadata"),
            reward_pb2.INPUT_REFERENCE: message.HasField("reference"),
        }
        for needed in (reward_pb2.INPUT_IMAGE, *self._reward.inputs):
            if not present[needed]:
                raise SampleError(
                    reward_pb2.ERROR_CODE_MISSING_INPUT,
                    f"reward {self._reward.name} needs {reward_pb2.Input.Name(needed)}, "
                    "and the sample has none",
                )

    def _decode(self, image: reward_pb2.Image, inline: memoryview) -> Pixels:
        data = self._slice(image.slice) if image.HasField("slice") else inline
        self._call.images += 1
        self._call.image_bytes += len(data)
        return decode(image, data, self._limits.image)

    def _slice(self, where: reward_pb2.Slice) -> memoryview:
        if self._shared is None:
            raise SampleError(
                reward_pb2.ERROR_CODE_INVALID_IMAGE,
                "the image is a slice, but the call names no file: set ScoreRequest.shared_file",
            )
        end = where.offset + where.length
        if end > len(self._shared):
            raise SampleError(
                reward_pb2.ERROR_CODE_INVALID_IMAGE,
                f"the image is bytes {where.offset} to {end} of a shared file of "
                f"{len(self._shared)} bytes",
            )
        return self._shared[where.offset : end]


def decoded_pixels(message: reward_pb2.Sample, sample: Sample) -> int:
    """How many pixels were decoded, and so take memory beyond the message's own."""
    images = [(message.image, sample.image)]
    if sample.reference is not None:
        images.append((message.reference, sample.reference))
    return sum(
        pixels.shape[0] * pixels.shape[1]
        for image, pixels in images
        if image.format not in RAW_FORMATS
    )
