import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from salon.errors import InvalidRequest, SampleError
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.images import ImageLimits, Pixels, WireImage, decode, encode
from tests.fixtures.service import REPOSITORY
from tests.salon.files import encoded, noise, png

LIMITS = ImageLimits()
PNG, JPEG, WEBP = pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_WEBP


def decoded(image: WireImage | pb.Image, limits: ImageLimits = LIMITS) -> Pixels:
    message = image.message if isinstance(image, WireImage) else image
    return decode(message, image.data, limits)


def refusal(image: WireImage | pb.Image, limits: ImageLimits = LIMITS) -> tuple[str, str]:
    with pytest.raises(SampleError) as caught:
        decoded(image, limits)
    return caught.value.code_name.removeprefix("ERROR_CODE_"), str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_comes_back_bit_for_bit(channels: int) -> None:
    images = np.stack([noise(channels=channels, seed=seed) for seed in range(3)])
    back = [decoded(image) for image in encode(images)]
    np.testing.assert_array_equal(np.stack(back), images)


def test_rows_and_channels_are_where_the_contract_says() -> None:
    [sent] = encode([np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)])
    assert (sent.message.height, sent.message.width) == (1, 2)
    assert sent.data == bytes([1, 2, 3, 4, 5, 6])


def test_a_view_that_is_not_contiguous_is_sent_in_order() -> None:
    image = noise()[::-1, ::2]
    [sent] = encode([image])
    np.testing.assert_array_equal(decoded(sent), image)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_file_has_the_pixels_that_went_in(kind: str, options: dict[str, bool]) -> None:
    pixels = noise()
    [sent] = encode([encoded(pixels, kind, **options)])
    np.testing.assert_array_equal(decoded(sent), pixels)


def test_a_jpeg_travels_as_the_bytes_the_caller_sent() -> None:
    data = encoded(noise(64, 64), "JPEG", quality=80)
    [sent] = encode([data])
    assert (sent.message.format, sent.data) == (JPEG, data)
    np.testing.assert_array_equal(decoded(sent), np.asarray(Image.open(io.BytesIO(data))))


def test_exif_rotation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show
    data = encoded(noise(10, 20), "JPEG", exif=exif)
    assert decoded(pb.Image(format=JPEG, data=data)).shape == (10, 20, 3)


def test_the_first_picture_of_a_phone_photo_is_scored() -> None:
    first, second = (Image.fromarray(noise(seed=seed)) for seed in range(2))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    [sent] = encode([data])
    np.testing.assert_array_equal(
        decoded(sent), np.asarray(Image.open(io.BytesIO(encoded(first, "JPEG"))))
    )


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA"])
def test_what_has_an_exact_form_in_rgb_or_gray_gets_it(mode: str) -> None:
    image = Image.fromarray(noise()).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(255)
    gray = mode in ("1", "L", "LA")
    expected = np.asarray(image.convert("RGB"))[..., : 1 if gray else 3]
    for given in (image, encoded(image)):
        [sent] = encode([given])
        np.testing.assert_array_equal(decoded(sent), expected)


def test_transparency_is_refused_with_the_way_out() -> None:
    image = Image.fromarray(noise())
    keyed = encoded(image, transparency=tuple(int(value) for value in noise()[0, 0]))
    image.putalpha(254)
    for data in (encoded(image), keyed, encoded(image, "WEBP", lossless=True)):
        [sent] = encode([data])
        kind, text = refusal(sent)
        assert kind == "UNSUPPORTED_IMAGE"
        assert "alpha_composite" in text
    with pytest.raises(InvalidRequest, match=r"image 0: .*alpha_composite"):
        list(encode([image]))


def test_cmyk_sixteen_bits_and_animations_are_refused() -> None:
    image = Image.fromarray(noise())
    other = Image.fromarray(noise(seed=1))
    rows = b"\0" + bytes(2 * 3 * 2)
    refused = [
        (JPEG, encoded(image.convert("CMYK"), "JPEG"), "CMYK"),
        (PNG, png(2, 1, depth=16, rows=rows), "16 bits"),
        (PNG, encoded(Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4))), "16 bits"),
        (PNG, encoded(image, save_all=True, append_images=[other]), "2 frames"),
        (WEBP, encoded(image, "WEBP", save_all=True, append_images=[other]), "2 frames"),
    ]
    for kind, data, word in refused:
        code, text = refusal(pb.Image(format=kind, data=data))
        assert code == "UNSUPPORTED_IMAGE"
        assert word in text


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (pb.Image(format=PNG, data=encoded(noise())[:200]), "truncated"),
        (pb.Image(format=JPEG, data=encoded(noise(64, 64), "JPEG")[:400]), "truncated"),
        (pb.Image(format=PNG, data=b""), "0 bytes"),
        (pb.Image(format=PNG, data=b"GIF89a" + bytes(50)), "no readable"),
        (pb.Image(format=PNG, data=encoded(noise(), "JPEG")), "the bytes are JPEG"),
        (pb.Image(format=PNG, data=png(0, 0)), "no pixels"),
        (pb.Image(data=bytes(12), height=2, width=2), "IMAGE_FORMAT_RGB8"),
        (pb.Image(format=pb.IMAGE_FORMAT_RGB8), "no pixels"),
        (pb.Image(format=pb.IMAGE_FORMAT_RGB8, data=bytes(11), height=2, width=2), "is 12 bytes"),
        (pb.Image(format=pb.IMAGE_FORMAT_RGB8, data=bytes(13), height=2, width=2), "got 13"),
        (pb.Image(format=pb.IMAGE_FORMAT_RGB8, data=bytes(16), height=2, width=2), "4 channel"),
        (pb.Image(format=pb.IMAGE_FORMAT_GRAY8, data=bytes(12), height=2, width=2), "3 channel"),
    ],
)
def test_bytes_that_are_not_the_image_they_claim_to_be(image: pb.Image, word: str) -> None:
    code, text = refusal(image)
    assert code == "INVALID_IMAGE"
    assert word in text


def test_a_size_above_the_limits_is_refused_and_one_at_them_is_not() -> None:
    limits = ImageLimits(max_side=20, max_pixels=200)
    for height, width in ((20, 10), (10, 20), (14, 14)):
        [sent] = encode([noise(height, width)])
        assert decoded(sent, limits).shape == (height, width, 3)
    for height, width in ((21, 1), (1, 21), (15, 14)):
        for image in (noise(height, width), encoded(noise(height, width))):
            [sent] = encode([image])
            assert refusal(sent, limits)[0] == "IMAGE_TOO_LARGE"


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    program = f"""
import resource, sys
from salon.errors import SampleError
from salon.wire.images import ImageLimits, decode
from salon.reward.v1 import reward_pb2 as pb
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bombs = [(pb.IMAGE_FORMAT_PNG, {png(20_000, 20_000, rows=bytes(100))!r}),
         (pb.IMAGE_FORMAT_PNG, {png(9000, 9000, rows=bytes(100))!r}),
         (pb.IMAGE_FORMAT_WEBP, {_webp_header(12_000, 12_000)!r})]
for kind, data in bombs:
    try:
        decode(pb.Image(format=kind), data, ImageLimits())
    except SampleError as error:
        print(error.code_name)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    *codes, grown_kib = done.stdout.split()
    assert codes == ["ERROR_CODE_IMAGE_TOO_LARGE"] * 3
    assert int(grown_kib) < 64 * 1024  # the smallest of the three would unpack to 243 MB


def _webp_header(height: int, width: int) -> bytes:
    """A small lossless WebP with its header's size overwritten (RFC 9649, section 3.4)."""
    data = bytearray(encoded(noise(), "WEBP", lossless=True))
    assert data[12:16] == b"VP8L"
    (bits,) = struct.unpack_from("<I", data, 21)
    struct.pack_into("<I", data, 21, bits & 0xF0000000 | (height - 1) << 14 | (width - 1))
    return bytes(data)


def test_floats_are_refused_and_rounding_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"float64.*\(x\*255\)\.round\(\)\.astype\(uint8\)"):
        list(encode(noise()[None] / 255))


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (noise(), r"\[N, H, W, C\].*images\[None\]"),
        (Image.fromarray(noise()), r"pass \[it\]"),
        (encoded(noise()), r"pass \[it\]"),
        ([noise(channels=4)], r"image 0 has shape \[12, 16, 4\]"),
        ([noise(), noise().transpose(2, 0, 1)], "image 1 .*channels last"),
        ([noise(0, 4)], "no pixels"),
        ([b"BM not a png"], "image 0: 12 bytes"),
        (["photo.png"], "image 0 is a str"),
        ([Image.open(io.BytesIO(encoded(noise())[:200]))], "image 0: .*truncated"),
    ],
)
def test_what_cannot_be_sent_is_named(images: object, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        list(encode(images))
