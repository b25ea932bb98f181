"""Whole files keep every pixel; whatever a format can prove broken is refused; work is bounded."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from salon.errors import InvalidRequest, SampleError
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.images import ImageLimits, check, decode, encode
from tests.salon.files import encoded, noise

LIMITS = ImageLimits()
FORMATS = {"PNG": pb.IMAGE_FORMAT_PNG, "JPEG": pb.IMAGE_FORMAT_JPEG, "WEBP": pb.IMAGE_FORMAT_WEBP}
INVALID, TOO_LARGE = "ERROR_CODE_INVALID_IMAGE", "ERROR_CODE_IMAGE_TOO_LARGE"
UNSUPPORTED = "ERROR_CODE_UNSUPPORTED_IMAGE"
fuzz = settings(deadline=None, max_examples=150)


def photo(height=61, width=83):
    """Smooth shapes and some noise, as photographs have."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([x * 3 + y, y * 2 % 256, (x * y) // 7], -1) + noise(height, width) // 16
    return Image.fromarray((waves % 256).astype(np.uint8))


def read(data, limits=LIMITS):
    [sent] = encode([data])
    return decode(sent.message, memoryview(data), limits)


def refusal(data, limits=LIMITS):
    with pytest.raises(SampleError) as caught:
        read(data, limits)
    return caught.value.code_name, str(caught.value)


def by_pillow(data):
    image = Image.open(io.BytesIO(data))
    gray = image.mode in ("1", "L", "LA")
    pixels = np.asarray(image.convert("L" if gray else "RGB"))
    return pixels[:, :, None] if gray else pixels


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(colour, depth, pixels_wide, height, rows, extra=b"", interlace=0):
    header = struct.pack(">IIBBBBB", pixels_wide, height, depth, colour, 0, 0, interlace)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            extra,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def adam7(colour, depth, width, height, channels):
    """An interlaced PNG of random samples; Pillow writes none."""
    rows, random = b"", np.random.default_rng(0)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    for column, row, across, down in [*passes, (0, 1, 1, 2)]:
        wide = len(range(column, width, across))
        for _ in range(row, height, down):
            if wide:
                size = (wide * channels * depth + 7) // 8
                rows += bytes([random.integers(5)]) + random.bytes(size)
    palette = chunk(b"PLTE", random.bytes(3 * 2**depth)) if colour == 3 else b""
    return make_png(colour, depth, width, height, rows, palette, interlace=1)


def whole_files():
    image = photo()
    files = {}
    for mode in ("1", "L", "P", "RGB"):
        files[f"png-{mode}"] = encoded(image.convert(mode))
    for mode in ("LA", "RGBA"):
        opaque = image.convert(mode)
        opaque.putalpha(255)
        files[f"png-{mode}"] = encoded(opaque)
    for bits in (1, 2, 4):
        files[f"png-P{bits}"] = encoded(image.quantize(2**bits), bits=bits)
        files[f"png-L{bits}"] = make_png(
            0, bits, 8, 2, b"\0" + b"\x1b" * bits + b"\2" + b"\3" * bits
        )
        files[f"png-interlaced-P{bits}"] = adam7(3, bits, 13, 11, 1)
    files["png-interlaced-RGB"] = adam7(2, 8, 13, 11, 3)
    files["png-interlaced-narrow"] = adam7(0, 8, 1, 9, 1)
    files["png-interlaced-gray1"] = adam7(0, 1, 21, 9, 1)
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "a cat " * 1000, zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    rest = {"exif": exif, "icc_profile": b"profile" * 500}
    files["png-metadata"] = encoded(image, pnginfo=text, **rest)
    files["png-trailing"] = encoded(image) + b"trailing" * 100
    files["png-key-unused"] = encoded(Image.new("RGB", (9, 9), (1, 2, 3)), transparency=(9, 9, 9))
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            for more in ({}, {"optimize": True}, {"restart_marker_blocks": 2}):
                name = f"jpeg-{sampling}-{progressive}-{next(iter(more), '')}"
                options = {"subsampling": sampling, "progressive": progressive, **more}
                files[name] = encoded(image, "JPEG", **options)
    files["jpeg-gray"] = encoded(image.convert("L"), "JPEG")
    files["jpeg-gray-progressive"] = encoded(image.convert("L"), "JPEG", progressive=True)
    files["jpeg-rgb"] = encoded(image, "JPEG", keep_rgb=True)
    files["jpeg-metadata"] = encoded(image, "JPEG", comment=b"hello", xmp=b"<x/>", **rest)
    files["jpeg-trailing"] = encoded(image, "JPEG") + b"trailing" * 100
    files["jpeg-filled"] = encoded(image, "JPEG")[:-2] + b"\xff" * 9 + b"\xff\xd9"
    files["jpeg-zeros-before-end"] = encoded(image, "JPEG")[:-2] + bytes(40) + b"\xff\xd9"
    files["webp-lossy"] = encoded(image, "WEBP")
    files["webp-lossless"] = encoded(image, "WEBP", lossless=True)
    files["webp-metadata"] = encoded(image, "WEBP", xmp=b"<x/>", **rest)
    opaque = image.convert("RGBA")
    opaque.putalpha(255)
    files["webp-opaque"] = encoded(opaque, "WEBP", lossless=True, exact=True)
    files["webp-trailing"] = encoded(image, "WEBP") + b"trailing" * 100
    return files


WHOLE = whole_files()


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_has_the_pixels_that_pillow_reads(name):
    np.testing.assert_array_equal(read(WHOLE[name]), by_pillow(WHOLE[name]))


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_whole_as_a_pillow_image_too(name, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(WHOLE[name])
    loaded = Image.open(path)
    loaded.load()
    for opened in (Image.open(path), Image.open(io.BytesIO(WHOLE[name])), loaded):
        with opened:
            [sent] = encode([opened])
        pixels = decode(sent.message, sent.data, LIMITS)
        np.testing.assert_array_equal(pixels, by_pillow(WHOLE[name]))


@fuzz
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_no_part_of_a_file_is_taken_for_the_whole(name, data):
    whole = WHOLE[name]
    cut = data.draw(st.integers(12, len(whole) - 1))
    try:
        pixels = read(whole[:cut])
    except SampleError as error:
        assert error.code_name == INVALID
    else:  # cut off was what lies behind the image
        assert "trailing" in name
        np.testing.assert_array_equal(pixels, by_pillow(whole))


@fuzz
@given(st.sampled_from([name for name in sorted(WHOLE) if name.startswith("png")]), st.data())
def test_a_flipped_bit_of_a_png_is_seen(name, data):
    whole = WHOLE[name]
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(8, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        pixels = read(bytes(damaged))
    except SampleError:
        return
    assert "trailing" in name
    np.testing.assert_array_equal(pixels, by_pillow(whole))


@fuzz
@given(st.sampled_from([name for name in sorted(WHOLE) if name.startswith("jpeg")]), st.data())
def test_no_jpeg_with_an_end_marker_put_back_is_taken_for_whole(name, data):
    whole = WHOLE[name][: WHOLE[name].rindex(b"\xff\xd9")].rstrip(b"\xff\0")
    # Within the last scan: a progressive file may end behind any other.
    start = whole.rindex(b"\xff\xda") + 2
    start += int.from_bytes(whole[start : start + 2], "big")
    cut = data.draw(st.integers(start, len(whole) - 2))
    cut -= whole[cut - 1] == 0xFF
    assert refusal(whole[:cut] + b"\xff\xd9")[0] == INVALID


def test_lost_and_garbled_data_within_a_jpeg_is_seen():
    data = encoded(photo(256, 256), "JPEG", quality=95)
    at = data.index(b"\xff\xda") + 2000
    for damaged in (data[:at] + data[at + 1000 :], data[:at] + b"\x12\x34\x56" + data[at:]):
        code, text = refusal(damaged)
        assert code == INVALID
        assert "corrupt or truncated" in text


def odd_jpeg(oddity, data):
    """`data` with a header that libjpeg warns of, and reads all the same."""
    odd = bytearray(data)
    if oddity == "jfif version":
        odd[data.index(b"JFIF") + 5] = 2
    elif oddity == "adobe transform":  # without a JFIF segment, which would go before
        odd[2:20] = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x07"
    else:
        scan = data.index(b"\xff\xda")
        end = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
        odd[end - 3 : end] = b"\x00\x00\x00"
    return bytes(odd)


@pytest.mark.parametrize("oddity", ["jfif version", "adobe transform", "scan"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_odd_header_of_a_jpeg_hides_no_damage(oddity, mode):
    data = encoded(photo(256, 256).convert(mode), "JPEG", quality=95)
    odd = odd_jpeg(oddity, data)
    np.testing.assert_array_equal(read(odd), by_pillow(data))
    at = odd.index(b"\xff\xda") + 2000
    for damaged in (odd[:at] + odd[at + 1000 :], odd[: len(odd) // 2] + b"\xff\xd9"):
        assert refusal(damaged)[0] == INVALID


def test_a_sequential_jpeg_that_lacks_a_component_is_seen():
    data = bytearray(encoded(photo(), "JPEG", subsampling="4:4:4"))
    at = data.index(b"\xff\xda")
    # The one scan of three components becomes one of the first alone.
    data[at : at + 14] = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    assert "components [2, 3] have no scan" in refusal(bytes(data))[1]


def png_with(**changes):
    """A small PNG in which one thing is wrong, its checksums right."""
    parts = {
        "width": 4,
        "rows": b"\0" + bytes(12),
        "header": None,
        "stream": None,
        "before": b"",
        "end": chunk(b"IEND", b""),
    } | changes
    header = parts["header"] or struct.pack(">IIBBBBB", parts["width"], 1, 8, 2, 0, 0, 0)
    stream = zlib.compress(parts["rows"]) if parts["stream"] is None else parts["stream"]
    data = b"".join([chunk(b"IHDR", header), parts["before"], chunk(b"IDAT", stream)])
    return b"\x89PNG\r\n\x1a\n" + data + parts["end"]


STREAM = zlib.compress(b"\0" + bytes(12))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (png_with(stream=STREAM[:-1] + b"\0"), "incorrect data check"),
        (png_with(stream=STREAM[:-4]), "its end is missing"),
        (png_with(rows=b"\0" + bytes(11)), "unpacks to 12 of the 13 bytes"),
        (png_with(rows=b"\0" + bytes(13)), "more than the 13 bytes"),
        (png_with(rows=b"\7" + bytes(12)), "rows cannot be read"),
        (png_with(end=b""), "without IEND"),
        (png_with(header=struct.pack(">IIBBBBB", 4, 1, 3, 2, 0, 0, 0)), "depth 3"),
        (png_with(header=struct.pack(">IIBBBBB", 4, 1, 8, 1, 0, 0, 0)), "colour type 1"),
        (png_with(before=chunk(b"te\0t", b"")), "not as the format says"),
        (png_with(before=chunk(b"pHYs", bytes(8))), "chunk b'pHYs' at byte 33 is not as"),
        (png_with(before=chunk(b"zTXt", b"a\0\1")), "not as the format says"),
        (png_with(before=chunk(b"IHDR", bytes(13))), "two IHDR"),
        (png_with(before=chunk(b"IDAT", b"") + chunk(b"teSt", b"")), "between its IDAT"),
        (make_png(3, 8, 2, 1, b"\0\0\2", chunk(b"PLTE", bytes(6))), "colour 2 of a palette of 2"),
        (make_png(3, 8, 2, 1, b"\0\0\0"), "its palette has 0 bytes"),
    ],
)
def test_what_a_png_declares_and_does_not_keep(data, word):
    code, text = refusal(data)
    assert code == INVALID
    assert word in text


def test_a_wrong_checksum_is_seen_in_every_chunk():
    data = WHOLE["png-metadata"]
    at, kinds = 8, []
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kinds.append(data[at + 4 : at + 8])
        damaged = bytearray(data)
        damaged[at + 8 + size] ^= 1
        code, text = refusal(bytes(damaged))
        assert code == INVALID
        assert f"chunk {kinds[-1]!r} at byte {at} has a wrong checksum" in text
        at += 12 + size
    assert {b"IHDR", b"zTXt", b"IDAT", b"IEND"} <= set(kinds)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_cut_short_is_seen_though_its_sizes_say_otherwise(lossless):
    whole = encoded(photo(), "WEBP", lossless=lossless)
    for cut in (len(whole) // 2, len(whole) * 9 // 10):
        data = bytearray(whole[: cut // 2 * 2])
        struct.pack_into("<I", data, 4, len(data) - 8)
        struct.pack_into("<I", data, 16, len(data) - 20)
        assert refusal(bytes(data))[0] == INVALID


def test_a_key_colour_is_transparent_where_it_is_used():
    gray = make_png(0, 2, 4, 1, b"\0\x1b", chunk(b"tRNS", b"\0\2"))
    palette = make_png(
        3, 8, 2, 1, b"\0\0\1", chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\xff\x80")
    )
    for data in (gray, palette):
        code, text = refusal(data)
        assert code == UNSUPPORTED
        assert "alpha_composite" in text


def jpeg_of_scans(times, side=64):
    """A progressive JPEG with one short scan over and over."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    start = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    end = start + 2
    while data[end] != 0xFF or data[end + 1] == 0:
        end += 1
    return data[:end] + data[start:end] * times + data[end:]


BODY = encoded(photo(8, 8), "JPEG")[2:]
HOSTILE = {
    "scans": jpeg_of_scans(400),
    "markers": b"\xff\xd8" + b"\xff\xe1\0\2" * 20_000 + BODY,
    "comments": b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000 + BODY,
    "chunks": png_with(before=chunk(b"teSt", b"") * 20_000),
    "data chunks": png_with(before=chunk(b"IDAT", b"") * 20_000),
    "compressed texts": png_with(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b")) * 10_000),
    "webp": b"RIFF" + struct.pack("<I", 4 + 8 * 20_000) + b"WEBP" + b"XXXX\0\0\0\0" * 20_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_too_much_work_is_refused_before_it_is_decoded(name, monkeypatch):
    monkeypatch.setattr("simplejpeg.decode_jpeg", None)
    monkeypatch.setattr(Image, "open", None)
    code, text = refusal(HOSTILE[name])
    assert code == TOO_LARGE
    assert "--max-image-" in text


def test_the_work_of_scans_is_bounded_by_their_pixels_too():
    data = encoded(photo(64, 64), "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    fits = ImageLimits(max_scan_pixels=scans * 64 * 64, max_scans=scans)
    assert read(data, fits).shape == (64, 64, 3)
    for limits in (
        ImageLimits(max_scan_pixels=scans * 64 * 64 - 1),
        ImageLimits(max_scans=scans - 1),
    ):
        assert refusal(data, limits)[0] == TOO_LARGE


def test_segments_at_the_limit_are_taken_and_one_more_is_not():
    data = png_with(before=chunk(b"teSt", b"") * 7)  # with IHDR and IEND nine chunks
    assert read(data, ImageLimits(max_segments=9)).shape == (1, 4, 3)
    assert refusal(data, ImageLimits(max_segments=8))[0] == TOO_LARGE
    data = png_with(before=chunk(b"IDAT", b"") * 7)
    assert read(data, ImageLimits(max_data_chunks=8)).shape == (1, 4, 3)
    assert refusal(data, ImageLimits(max_data_chunks=7))[0] == TOO_LARGE


def test_compressed_metadata_is_never_unpacked(monkeypatch):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 1000
    data = png_with(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000))) + text)
    unpacked, real = [], zlib.decompressobj

    class Counted:
        def __init__(self):
            self._stream = real()

        def decompress(self, packed, most):
            unpacked.append(bytes(packed))
            return self._stream.decompress(packed, most)

        @property
        def eof(self):
            return self._stream.eof

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    monkeypatch.setattr(Image, "open", None)  # Pillow would look at them
    assert read(data).shape == (1, 4, 3)
    assert unpacked == [STREAM]


def test_cmyk_is_refused_from_the_header():
    data = encoded(photo().convert("CMYK"), "JPEG")
    [sent] = encode([data])
    with pytest.raises(SampleError, match="CMYK"):
        check(sent.message, data, LIMITS)


def test_a_check_tells_the_pixels_that_decoding_makes():
    for name, data in WHOLE.items():
        [sent] = encode([data])
        checked = check(sent.message, data, LIMITS)
        assert checked.new_pixels == np.prod(by_pillow(data).shape[:2]), name
    raw = noise()
    [sent] = encode([raw])
    assert check(sent.message, sent.data, LIMITS).new_pixels == 0


DEEP = make_png(2, 16, 8, 8, (b"\0" + struct.pack(">H", 0x12FF) * 24) * 8)


def opened_and_loaded(path):
    image = Image.open(path)
    image.load()
    return image


def loaded_from_a_stream(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("way", [Image.open, opened_and_loaded])
def test_a_16_bit_file_is_refused_as_a_pillow_image(way, tmp_path):
    (tmp_path / "deep.png").write_bytes(DEEP)
    ppm = b"P6 2 1 65535\n" + bytes(12)
    (tmp_path / "deep.ppm").write_bytes(ppm)
    for name in ("deep.png", "deep.ppm"):
        words = r"image 0: the P.. has more than 8 bits"
        with way(tmp_path / name) as image, pytest.raises(InvalidRequest, match=words):
            list(encode([image]))
    for opened in (Image.open(io.BytesIO(DEEP)), loaded_from_a_stream(DEEP)):
        with pytest.raises(InvalidRequest, match="more than 8 bits"):
            list(encode([opened]))


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "CMYK", "LAB"])
def test_a_mode_without_an_exact_form_is_refused(mode):
    with pytest.raises(InvalidRequest, match=f"mode {mode}"):
        list(encode([Image.new(mode, (4, 4))]))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_an_animation_is_refused_as_a_pillow_image_and_one_of_its_frames_is_not(kind):
    frames = [photo(), Image.fromarray(noise(61, 83))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidRequest, match=r"2 frames.*image\.copy\(\)"):
        list(encode([Image.open(io.BytesIO(data))]))
    [sent] = encode([Image.open(io.BytesIO(data)).copy()])
    assert (sent.message.height, sent.message.width) == (61, 83)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_file_is_refused_as_a_pillow_image(kind, tmp_path, monkeypatch):
    whole = encoded(photo(256, 256), kind)
    at = len(whole) // 2
    path = tmp_path / "damaged"
    path.write_bytes(whole[:at] + (b"\xff\xd9" if kind == "JPEG" else whole[at + 1 :]))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    words = r"image 0: the .*(corrupt|truncated)"
    with Image.open(path) as image, pytest.raises(InvalidRequest, match=words):
        list(encode([image]))


def is_refused(image):
    try:
        [sent] = encode([image])
        decode(sent.message, sent.data, LIMITS)
    except (SampleError, InvalidRequest):
        return True
    return False


def animation():
    frames = [photo(), Image.fromarray(noise(61, 83))]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def test_an_animation_of_which_pillow_sees_one_frame_is_refused_as_a_pillow_image():
    whole, hidden = animation(), 0
    for at, bit in itertools.product((*range(12, 24), *range(30, 120)), range(8)):  # but its size
        damaged = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        try:
            image = Image.open(io.BytesIO(damaged))
        except (Image.DecompressionBombError, OSError, SyntaxError):
            continue
        refused = is_refused(damaged)
        assert is_refused(image) == refused, (at, bit)
        hidden += refused and image.n_frames == 1
    assert hidden


DAMAGED = [name for name in WHOLE if "interlaced" not in name]


@fuzz
@given(st.sampled_from(sorted(DAMAGED)), st.data())
def test_a_pillow_image_is_judged_as_its_bytes_are(name, data):
    whole = WHOLE[name]
    at, bit = data.draw(st.integers(12, len(whole) - 1)), data.draw(st.integers(0, 7))
    damaged = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    try:
        image = Image.open(io.BytesIO(damaged))
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return
    if image.width * image.height > 10**7:
        return  # what Pillow would decode for minutes
    assert is_refused(image) == is_refused(damaged)


def test_the_file_of_a_decoded_image_is_judged_while_it_is_the_images(tmp_path):
    whole = encoded(photo(256, 256))
    at = whole.index(b"IDAT") + 4
    size = int.from_bytes(whole[at - 8 : at - 4], "big")
    damaged = whole[: at + size] + b"\0\0\0\0" + whole[at + size + 4 :]  # the checksum
    path = tmp_path / "damaged.png"
    path.write_bytes(damaged)
    for image in (opened_and_loaded(path), loaded_from_a_stream(damaged)):
        with pytest.raises(InvalidRequest, match="wrong checksum"):
            list(encode([image]))
    drawn_on, replaced, lost = (opened_and_loaded(path) for _ in range(3))
    drawn_on.putpixel((0, 0), (1, 2, 3))
    assert not is_refused(drawn_on)
    path.write_bytes(encoded(Image.fromarray(noise(256, 256)))[:-30])
    assert not is_refused(replaced)
    path.unlink()
    assert not is_refused(lost)


def test_what_pillow_cannot_decode_is_refused_in_words(tmp_path):
    with Image.open(io.BytesIO(encoded(photo(), "BMP"))) as closed:
        pass
    with pytest.raises(InvalidRequest, match="image 0: Pillow cannot decode"):
        list(encode([closed]))


def test_a_phones_picture_is_scored_from_its_name_too(tmp_path):
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo()])
    path = tmp_path / "phone.jpg"
    path.write_bytes(data)
    for image in (Image.open(path), opened_and_loaded(path), loaded_from_a_stream(data)):
        assert image.format == "MPO"
        with image:
            [sent] = encode([image])
        np.testing.assert_array_equal(decode(sent.message, sent.data, LIMITS), by_pillow(data))


def test_a_draft_keeps_the_size_that_its_owner_chose():
    image = Image.open(io.BytesIO(encoded(photo(256, 256), "JPEG")))
    image.draft("RGB", (64, 64))
    expected = np.asarray(image.copy())
    [sent] = encode([image])
    np.testing.assert_array_equal(decode(sent.message, sent.data, LIMITS), expected)
