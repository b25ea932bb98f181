"""From the samples of one call to samples that a reward can score."""

from collections.abc import Callable
from dataclasses import dataclass

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, Sample
from salon.wire.frames import ReceivedSample
from salon.wire.images import CheckedImage, Pixels, check
from salon.wire.structs import to_dict
from services.scoring.call import Call
from services.scoring.decoding import DecodedPixels
from services.scoring.limits import Limits


@dataclass(frozen=True)
class CheckedSample:
    """A sample that has all the reward needs; its image files are checked, not decoded."""

    new_pixels: int
    """How many decoding makes, of image and reference: memory beyond the message's own."""
    read: Callable[[], Sample]
    """Decodes it, in its turn; raises SampleError where that fails, and DeadlineExceeded where the
    call is given up before."""


class SampleReader:
    """Reads the samples of one call to one reward."""

    def __init__(
        self,
        reward: Reward,
        limits: Limits,
        shared: memoryview | None,
        call: Call,
        held: DecodedPixels,
    ) -> None:
        """Prepare to read.

        Args:
            reward: whose needs the samples are checked for.
            limits: what each of them may be.
            shared: the call's shared file, if it has one.
            call: who waits; its images are counted.
            held: gives each image its turn to be decoded.
        """
        self._reward = reward
        self._limits = limits
        self._shared = shared
        self._call = call
        self._held = held

    def check(self, received: ReceivedSample) -> CheckedSample:
        """The sample, checked; raw pixels stay where they are, uncopied, also once it is read.

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
        image, reference = self._image(message.image, received.image), None
        if message.HasField("reference"):
            reference = self._image(message.reference, received.reference)

        def read() -> Sample:
            return Sample(
                self._decode(image),
                message.prompt,
                to_dict(message.metadata),
                self._decode(reference) if reference else None,
            )

        return CheckedSample(image.new_pixels + (reference.new_pixels if reference else 0), read)

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

    def _image(self, image: reward_pb2.Image, inline: memoryview) -> CheckedImage:
        data = self._slice(image.slice) if image.HasField("slice") else inline
        self._call.images += 1
        self._call.image_bytes += len(data)
        return check(image, data, self._limits.image)

    def _decode(self, image: CheckedImage) -> Pixels:
        if not image.new_pixels:
            return image.decode()
        with self._held.decoding(image.new_pixels, self._call):
            return image.decode()

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
