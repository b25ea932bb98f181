"""ScoreRequests to and from the wire, with the bytes of their images copied as seldom as possible.

Protobuf copies pixels into the message, again when it serializes, and twice more on the other side.
Here only the tags and lengths around them are written and read by hand
(https://protobuf.dev/programming-guides/encoding/); protobuf does the rest. What is on the wire is
an ordinary ScoreRequest, both ways.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from salon.reward.v1 import reward_pb2
from salon.wire.images import Buffer, WireImage
from salon.wire.limits import FEW_FIELDS, check_bounds
from salon.wire.shared_files import SharedFile

_BYTES = 2  # the wire type of strings, bytes and messages
_SAMPLE = reward_pb2.ScoreRequest.SAMPLES_FIELD_NUMBER << 3 | _BYTES
_IMAGE = reward_pb2.Sample.IMAGE_FIELD_NUMBER << 3 | _BYTES
_REFERENCE = reward_pb2.Sample.REFERENCE_FIELD_NUMBER << 3 | _BYTES
_DATA = reward_pb2.Image.DATA_FIELD_NUMBER << 3 | _BYTES
_SLICE = reward_pb2.Image.SLICE_FIELD_NUMBER << 3 | _BYTES

_NO_BYTES = memoryview(b"")

UNCOUNTED_BYTES = 1024 * 1024
"""A request without its images' bytes that is no larger cannot take much memory."""


@dataclass(frozen=True)
class Frame:
    """One serialized ScoreRequest, ready to send."""

    payload: bytes
    samples: int
    shared_file: SharedFile | None = None
    """Where its images' bytes lie, if not in the payload."""

    @property
    def size(self) -> int:
        """Bytes of the payload and of the shared file."""
        shared = self.shared_file.size if self.shared_file is not None else 0
        return len(self.payload) + shared

    def inline(self) -> bytes:
        """The payload with the images' bytes in it.

        Raises:
            SharedFileUnavailable: the shared file is gone.
        """
        if self.shared_file is None:
            return self.payload
        return _inline(self.payload, self.shared_file.read())

    def delete_file(self) -> None:
        """Once the call is over, give back the room of the shared file, if there is one."""
        if self.shared_file is not None:
            self.shared_file.delete()


@dataclass(frozen=True)
class FramedSample:
    """The bytes of one field `samples` of a ScoreRequest, in pieces that are joined once."""

    pieces: tuple[Buffer, ...]
    size: int


def frame_sample(
    image: WireImage, reference: WireImage | None, rest: reward_pb2.Sample
) -> FramedSample:
    """The wire form of a sample.

    Args:
        image: the image.
        reference: the reference image, or None.
        rest: the sample without images.
    """
    pieces = [*_image_field(_IMAGE, image), rest.SerializeToString()]
    if reference is not None:
        pieces += _image_field(_REFERENCE, reference)
    size = sum(len(piece) for piece in pieces)
    head = bytes([_SAMPLE]) + _varint(size)
    return FramedSample((head, *pieces), len(head) + size)


def join(request: reward_pb2.ScoreRequest, samples: Sequence[FramedSample]) -> bytes:
    """The serialized `request`, itself without samples, with `samples`; copies the pixels once."""
    pieces = (piece for sample in samples for piece in sample.pieces)
    return b"".join([request.SerializeToString(), *pieces])


@dataclass(frozen=True)
class ReceivedSample:
    """One sample of a request, and the bytes of its images, which are not copied."""

    message: reward_pb2.Sample
    """Its images' `data` is empty."""
    image: memoryview
    """Empty where the message has no such image, or has it as a slice."""
    reference: memoryview


@dataclass(frozen=True)
class Received:
    """A request as it came: `samples` are those of `request`, in order."""

    request: reward_pb2.ScoreRequest
    samples: list[ReceivedSample]


def parse(payload: bytes, max_samples: int) -> Received:
    """Read a serialized ScoreRequest; the images' bytes stay where they are, in `payload`.

    Any valid encoding is read as protobuf itself reads it, but none with more than `FEW_FIELDS`
    fields beside its samples.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no ScoreRequest.
        InvalidRequest: it has more than `max_samples` samples, or too many other fields, or too
            much in the samples' metadata.
    """
    try:
        stripped, cut = _strip_request(memoryview(payload), max_samples)
    except _Unusual:
        check_bounds(payload, reward_pb2.ScoreRequest.DESCRIPTOR, "samples", max_samples)
        return _parse_plainly(payload)
    if len(stripped) > UNCOUNTED_BYTES:
        check_bounds(stripped, reward_pb2.ScoreRequest.DESCRIPTOR, "samples", max_samples)
    request = reward_pb2.ScoreRequest.FromString(stripped)
    samples = [
        ReceivedSample(message, image, reference)
        for message, (image, reference) in zip(request.samples, cut, strict=True)
    ]
    return Received(request, samples)


class _Unusual(Exception):
    """Malformed, or an encoding that is valid but that serializers do not write."""


def _parse_plainly(payload: bytes) -> Received:
    request = reward_pb2.ScoreRequest.FromString(payload)
    samples = []
    for message in request.samples:
        image, reference = _take_data(message, "image"), _take_data(message, "reference")
        samples.append(ReceivedSample(message, image, reference))
    return Received(request, samples)


def _take_data(sample: reward_pb2.Sample, name: str) -> memoryview:
    image: reward_pb2.Image = getattr(sample, name)
    if image.WhichOneof("source") != "data":
        return _NO_BYTES
    data = memoryview(image.data)
    image.data = b""
    return data


def _strip_request(
    payload: memoryview, max_samples: int
) -> tuple[bytes, list[tuple[memoryview, memoryview]]]:
    """The request with every `data` empty, and for each sample what was cut out."""
    kept: list[Buffer] = []
    cut: list[tuple[memoryview, memoryview]] = []
    for tag, start, body, end in _fields(payload, max_samples + FEW_FIELDS):
        if tag == _SAMPLE:
            sample, images = _strip_sample(payload[body:end])
            kept += [bytes([_SAMPLE]), _varint(len(sample)), sample]
            if len(cut) == max_samples:
                raise _Unusual
            cut.append(images)
        else:
            kept.append(payload[start:end])
    return b"".join(kept), cut


def _strip_sample(sample: memoryview) -> tuple[bytes, tuple[memoryview, memoryview]]:
    kept: list[Buffer] = []
    images: dict[int, memoryview] = {}
    for tag, start, body, end in _fields(sample):
        if tag in images:
            raise _Unusual  # protobuf merges the two
        if tag in (_IMAGE, _REFERENCE):
            image, images[tag] = _strip_image(sample[body:end])
            kept += [bytes([tag]), _varint(len(image)), image]
        else:
            kept.append(sample[start:end])
    return b"".join(kept), (images.get(_IMAGE, _NO_BYTES), images.get(_REFERENCE, _NO_BYTES))


def _strip_image(image: memoryview) -> tuple[bytes, memoryview]:
    kept: list[Buffer] = []
    data: memoryview | None = None
    sources = 0
    for tag, start, body, end in _fields(image):
        if tag == _DATA:
            data = image[body:end]
            kept.append(bytes([_DATA, 0]))
        else:
            kept.append(image[start:end])
        sources += tag in (_DATA, _SLICE)
    if sources > 1:
        raise _Unusual  # the last one counts
    return b"".join(kept), _NO_BYTES if data is None else data


def _fields(message: memoryview, most: int = FEW_FIELDS) -> Iterator[tuple[int, int, int, int]]:
    """Tag, start, start of the body and end of each field; the body of a number is the number."""
    position, size = 0, len(message)
    count = 0
    while position < size:
        count += 1
        if count > most:
            raise _Unusual
        start, tag = position, message[position]
        # Two bytes of tag, no field number, groups: no serializer makes these of our messages.
        if tag >= 0x80 or tag < 0x08:
            raise _Unusual
        kind = tag & 7
        body = position + 1
        if kind == _BYTES:
            length, body = _read_varint(message, body)
            position = body + length
        elif kind == 0:
            _, position = _read_varint(message, body)
        else:
            raise _Unusual
        if position > size:
            raise _Unusual
        yield tag, start, body, position


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of up to 28 bits, and where it ends."""
    value = 0
    for shift in (0, 7, 14, 21):
        if position >= len(message):
            raise _Unusual
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Unusual


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _image_field(tag: int, image: WireImage) -> list[Buffer]:
    pieces: list[Buffer] = [image.message.SerializeToString()]
    if image.message.WhichOneof("source") is None:
        pieces += [bytes([_DATA]) + _varint(len(image.data)), image.data]
    size = sum(len(piece) for piece in pieces)
    return [bytes([tag]) + _varint(size), *pieces]


def _sliced_images(sample: reward_pb2.Sample) -> list[reward_pb2.Image]:
    # Reading a field that is absent does not set it.
    return [image for image in (sample.image, sample.reference) if image.HasField("slice")]


def _inline(payload: bytes, shared: bytes) -> bytes:
    request = reward_pb2.ScoreRequest.FromString(payload)
    for sample in request.samples:
        for image in _sliced_images(sample):
            start = image.slice.offset
            image.data = shared[start : start + image.slice.length]
    request.shared_file = ""
    return request.SerializeToString()
