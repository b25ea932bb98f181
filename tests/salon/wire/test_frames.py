"""What is written and read by hand, against protobuf's own serializer and parser."""

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from salon.errors import InvalidRequest
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.frames import frame_sample, join, parse
from salon.wire.images import WireImage

fuzz = settings(deadline=None, max_examples=150)

texts = st.text(max_size=20)
numbers = st.integers(0, 2**32 - 1)
slices = st.builds(pb.Slice, offset=st.integers(0, 2**64 - 1), length=st.integers(0, 300))
shapes = {"format": st.integers(0, 9), "height": numbers, "width": numbers}
images = st.one_of(
    st.builds(pb.Image, **shapes),
    st.builds(pb.Image, data=st.binary(max_size=400), **shapes),
    st.builds(pb.Image, slice=slices, **shapes),
)


@st.composite
def samples(draw):
    sample = pb.Sample(prompt=draw(texts))
    if draw(st.booleans()):
        sample.image.CopyFrom(draw(images))
    if draw(st.booleans()):
        sample.reference.CopyFrom(draw(images))
    if draw(st.booleans()):
        sample.metadata.update(draw(st.dictionaries(texts, st.integers(0, 9) | texts, max_size=3)))
    return sample


requests = st.builds(
    pb.ScoreRequest,
    reward=texts,
    samples=st.lists(samples(), max_size=4),
    shared_file=texts,
    instance=texts,
)


def assert_received(payload):
    """`parse` gives what protobuf gives, only that the bytes of images lie beside them."""
    expected = pb.ScoreRequest.FromString(payload)
    received = parse(payload, 1024)
    assert [sample.message for sample in received.samples] == list(received.request.samples)
    for sample in received.samples:
        for name, data in (("image", sample.image), ("reference", sample.reference)):
            image = getattr(sample.message, name)
            if image.WhichOneof("source") == "data":
                assert image.data == b""
                image.data = bytes(data)
            else:
                assert data == b""
    assert received.request == expected
    # Unknown fields are the same as well, which == does not look at.
    assert received.request.SerializeToString() == expected.SerializeToString()


@fuzz
@given(requests)
def test_every_request_is_read_as_protobuf_reads_it(request):
    assert_received(request.SerializeToString())


@fuzz
@given(requests, requests)
def test_two_requests_in_a_row_merge_as_protobuf_merges_them(first, second):
    assert_received(first.SerializeToString() + second.SerializeToString())


@fuzz
@given(requests, st.data())
def test_damaged_bytes_are_refused_or_read_as_protobuf_reads_them(request, data):
    payload = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload)))
        payload[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    assert_same_verdict(bytes(payload))


@fuzz
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused_or_read_as_protobuf_reads_them(payload):
    assert_same_verdict(payload)


def assert_same_verdict(payload):
    try:
        pb.ScoreRequest.FromString(payload)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse(payload, 1024)
    else:
        assert_received(payload)


def field(tag, body):
    assert len(body) < 128
    return bytes([tag, len(body)]) + body


IMAGE = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=b"abc").SerializeToString()


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(field(0x0A, IMAGE) + field(0x0A, b"\x18\x05"), id="image twice: merged"),
        pytest.param(field(0x0A, IMAGE + field(0x12, b"de")), id="data twice: the last counts"),
        pytest.param(field(0x0A, IMAGE + b"\x2a\x00"), id="data, then slice: slice"),
        pytest.param(field(0x0A, b"\x2a\x00" + IMAGE), id="slice, then data: data"),
        pytest.param(field(0x12, b"p") + field(0x22, IMAGE) + field(0x0A, IMAGE), id="order"),
        pytest.param(b"\x8a\x00" + bytes([len(IMAGE)]) + IMAGE, id="a tag of two bytes"),
        pytest.param(b"\x0a" + bytes([len(IMAGE) | 0x80, 0x80, 0]) + IMAGE, id="a long length"),
        pytest.param(field(0x0A, IMAGE) + b"\xb8\x06\x07", id="an unknown number"),
        pytest.param(field(0x0A, IMAGE) + field(0x7A, b"new"), id="an unknown message"),
        pytest.param(field(0x0A, IMAGE) + b"\x7b\x08\x01\x7c", id="an unknown group"),
        pytest.param(field(0x0A, IMAGE) + b"\x79" + bytes(8), id="an unknown fixed64"),
        pytest.param(b"\x08\x01", id="image with the wire type of a number"),
    ],
)
def test_encodings_that_other_languages_may_choose(sample):
    assert_received(field(0x12, sample) + field(0x0A, b"reward"))


EMPTY = b"\x12\x00"
UNUSUAL = b"\x92\x00\x00"


@pytest.mark.parametrize("head", [b"", UNUSUAL, field(0x0A, b"reward"), b"\x7b\x12\x00\x7c"])
def test_no_more_samples_are_read_than_may_be(head):
    samples = 4 - (head == UNUSUAL)
    payload = head + EMPTY * samples
    assert_received(payload)
    assert len(parse(payload, 4).samples) == 4
    for more in (1, 250_000):
        with pytest.raises(InvalidRequest, match="more than 4 samples in one call"):
            parse(payload + EMPTY * more, 4)


@pytest.mark.parametrize("body", [b"\x0a\x00", b"\x79" + bytes(8), b"\x7d" + bytes(4), b"\x78\x01"])
def test_no_more_fields_are_read_than_any_request_has(body):
    payload = body * 50
    assert_received(payload)
    with pytest.raises(InvalidRequest, match="more than 64 fields beside its samples"):
        parse(body * 2000, 4)
    assert_received(field(0x12, b"\x0a\x00" * 60))


def test_the_bytes_of_images_are_not_copied():
    request = pb.ScoreRequest(samples=[pb.Sample(image=pb.Image(data=b"pixels"))])
    payload = request.SerializeToString()
    [sample] = parse(payload, 1024).samples
    assert sample.image.obj is payload
    assert sample.image.readonly


wire_images = st.builds(
    WireImage, st.builds(pb.Image, **shapes), st.binary(max_size=300).map(memoryview)
)


@fuzz
@given(
    st.builds(pb.ScoreRequest, reward=texts, instance=texts),
    st.lists(st.tuples(wire_images, st.none() | wire_images, texts), max_size=4),
)
def test_what_is_framed_is_the_message(request, parts):
    framed = []
    expected = pb.ScoreRequest.FromString(request.SerializeToString())
    for image, reference, prompt in parts:
        rest = pb.Sample(prompt=prompt, metadata=Struct())
        framed.append(frame_sample(image, reference, rest))
        sample = expected.samples.add(prompt=prompt, metadata=Struct())
        for wire, into in ((image, sample.image), (reference, sample.reference)):
            if wire is not None:
                into.MergeFrom(wire.message)
                into.data = bytes(wire.data)
    payload = join(request, framed)
    assert pb.ScoreRequest.FromString(payload) == expected
    assert len(payload) == request.ByteSize() + sum(sample.size for sample in framed)
