"""Messages made by hand from the contract, so that the server is not checked by its own SDK."""

from collections.abc import Sequence

from benchmarks.soak.plan import PlannedRequest, PlannedSample
from benchmarks.soak.pool import png
from salon.reward.v1 import reward_pb2
from salon.wire.images import Pixels
from salon.wire.shared_files import SharedDirectory, SharedFile


def make_message(
    request: PlannedRequest,
    pool: Sequence[Pixels],
    shared: SharedDirectory,
) -> tuple[reward_pb2.ScoreRequest, SharedFile | None]:
    """The message of a request, and the file that its images lie in, if they do."""
    message = reward_pb2.ScoreRequest(reward=request.reward)
    for planned in request.samples:
        image = _image(planned, pool[planned.image], as_png=request.way == "png")
        message.samples.add(image=image, prompt=planned.prompt)
    if request.way != "shared":
        return message, None
    images = [sample.image for sample in message.samples]
    file = shared.write([image.data for image in images])
    message.shared_file = file.path.name
    for image, offset in zip(images, file.offsets, strict=True):
        length = len(image.data)
        image.slice.offset, image.slice.length = offset, length  # takes the place of `data`
    return message, file


def corrupt_png(image: Pixels) -> bytes:
    """A PNG file of which the second half is missing."""
    file = png(image)
    return file[: len(file) // 2]


def _image(planned: PlannedSample, pixels: Pixels, as_png: bool) -> reward_pb2.Image:
    height, width, _ = pixels.shape
    if planned.fault == "corrupt_png":
        return reward_pb2.Image(format=reward_pb2.IMAGE_FORMAT_PNG, data=corrupt_png(pixels))
    if planned.fault != "wrong_shape" and as_png:
        return reward_pb2.Image(format=reward_pb2.IMAGE_FORMAT_PNG, data=png(pixels))
    if planned.fault == "wrong_shape":
        height += 1
    return reward_pb2.Image(
        format=reward_pb2.IMAGE_FORMAT_RGB8, data=pixels.tobytes(), height=height, width=width
    )
