"""PNG files (PNG specification, third edition; sections in brackets).

All chunks are walked and their checksums compared before anything is unpacked; then one zlib stream
is, to exactly as many bytes as the header asks for. Pillow undoes the filters and the interlacing,
and sees no other chunk.
"""

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salon.wire.images.limits import (
    ImageLimits,
    check_segments,
    check_size,
    invalid,
    too_large,
    unsupported,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGB_ALPHA: 4}
_DEPTHS = {
    _GRAY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GRAY_ALPHA: (8, 16),
    _RGB_ALPHA: (8, 16),
}
# What Pillow calls the samples in memory; of those below 8 bits, with the depth behind it.
_MODES = {_GRAY: "L", _RGB: "RGB", _PALETTE: "P", _GRAY_ALPHA: "LA", _RGB_ALPHA: "RGBA"}
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_SIZES = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}  # of metadata, in bytes [11.3]
_COMPRESSED = (b"zTXt", b"iCCP")
_NAME_BYTES = 79  # of a keyword or a profile's name, at most
# Of each pass of Adam7: first column and row, and the steps between them [8.1].
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_STORED_BYTES = 65535  # of one stored block of deflate (RFC 1951, section 3.2.4)


@dataclass(frozen=True)
class PngFile:
    """A PNG whose structure holds; nothing of it is unpacked yet."""

    height: int
    width: int
    _depth: int
    _colour: int
    _interlaced: bool
    _palette: bytes
    _transparency: bytes | None
    _data: memoryview
    _pieces: list[int]
    """Where in it the pieces of the zlib stream begin and end, in turn."""

    def decode(self) -> NDArray[np.uint8]:
        """Its pixels, uint8 [H, W, C].

        Raises:
            SampleError: INVALID_IMAGE; UNSUPPORTED_IMAGE where a pixel is transparent.
        """
        samples = self._samples()
        if self._colour == _PALETTE:
            return self._look_up(samples)
        if self._colour in (_GRAY_ALPHA, _RGB_ALPHA):
            if samples[..., -1].min() < 255:
                raise _transparent()
            return np.ascontiguousarray(samples[..., :-1])
        if self._transparency is not None and self._has_key(samples, self._transparency):
            raise _transparent()
        return samples

    def _samples(self) -> NDArray[np.uint8]:
        """As stored, uint8 [H, W, C]; gray of fewer bits is spread to 0 ... 255."""
        packed = _MODES[self._colour]
        # Pillow's mode "1" becomes 0 and 255 in an array of booleans' stead; "L;2" spreads itself.
        mode = "1" if (self._depth, self._colour) == (1, _GRAY) else packed
        if self._depth < 8:
            packed = "1" if mode == "1" else f"{packed};{self._depth}"
        stream = _stored(self._unpack())
        try:
            image = Image.frombytes(
                mode, (self.width, self.height), stream, "zip", packed, int(self._interlaced)
            )
        except ValueError as error:
            raise invalid(f"the PNG is corrupt: its rows cannot be read ({error})") from None
        samples = np.asarray(image.convert("L") if mode == "1" else image)
        return samples[:, :, None] if samples.ndim == 2 else samples

    def _unpack(self) -> bytes:
        expected = self._row_bytes()
        stream = zlib.decompressobj()
        begins, ends = self._pieces[::2], self._pieces[1::2]
        pieces = [self._data[begin:end] for begin, end in zip(begins, ends, strict=True)]
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        try:
            # One byte more shows a stream that is too long; at its end zlib compares the checksum.
            unpacked = stream.decompress(data, expected + 1)
        except zlib.error as error:
            raise invalid(f"the PNG is corrupt: {error}") from None
        if len(unpacked) > expected:
            raise invalid(
                f"the PNG is corrupt: its data unpacks to more than the {expected} bytes of its "
                "rows"
            )
        if len(unpacked) < expected or not stream.eof:
            raise invalid(
                f"the PNG is truncated: its data unpacks to {len(unpacked)} of the {expected} "
                "bytes of its rows" + ("" if stream.eof else ", and its end is missing")
            )
        return unpacked

    def _row_bytes(self) -> int:
        """Of all rows, each with the byte of its filter."""
        bits = self._depth * _CHANNELS[self._colour]
        passes = _ADAM7 if self._interlaced else ((0, 0, 1, 1),)
        total = 0
        for column, row, across, down in passes:
            width = -((column - self.width) // across)
            height = -((row - self.height) // down)
            if width > 0 and height > 0:
                total += height * (1 + (width * bits + 7) // 8)
        return total

    def _look_up(self, indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
        colours = np.frombuffer(self._palette, np.uint8).reshape(-1, 3)
        greatest = int(indices.max())
        if greatest >= len(colours):
            raise invalid(
                f"the PNG is corrupt: a pixel has colour {greatest} of a palette of {len(colours)}"
            )
        if self._transparency is not None:
            alpha = np.full(256, 255, np.uint8)
            alpha[: len(self._transparency)] = np.frombuffer(self._transparency, np.uint8)
            if alpha[indices].min() < 255:
                raise _transparent()
        return colours[indices[..., 0]]

    def _has_key(self, samples: NDArray[np.uint8], transparency: bytes) -> bool:
        """Whether any pixel is of the one colour that is transparent [11.3.2.1]."""
        key = np.frombuffer(transparency, ">u2").astype(np.int64)
        spread = key * 255 // (2**self._depth - 1)
        return bool((samples == spread).all(axis=2).any())


def check(data: memoryview, limits: ImageLimits) -> PngFile:
    """Walk the chunks of a file that begins as a PNG does.

    What lies behind its end is not looked at.

    Raises:
        SampleError: INVALID_IMAGE, IMAGE_TOO_LARGE or UNSUPPORTED_IMAGE.
    """
    header = palette = transparency = frames = b""
    # Numbers: Python's collector would look at so many views again and again.
    pieces: list[int] = []
    kinds: list[bytes] = []
    at = len(SIGNATURE)
    while not kinds or kinds[-1] != b"IEND":
        kind, body, at = _chunk(data, at)
        if not kinds:
            header = _header(kind, body, limits)
        elif kind == b"IHDR" or (kind == b"PLTE" and b"PLTE" in kinds):
            raise invalid(f"the PNG is corrupt: it has two {kind.decode()} chunks")
        if kind == b"IDAT":
            if pieces and kinds[-1] != b"IDAT":
                raise invalid("the PNG is corrupt: other chunks lie between its IDAT chunks")
            pieces += at - 4 - len(body), at - 4
        elif kind == b"PLTE":
            palette = bytes(body)
        elif kind == b"tRNS":
            if pieces:
                raise invalid("the PNG is corrupt: its tRNS chunk lies behind its pixels")
            transparency = bytes(body)
        elif kind == b"acTL" and not pieces:
            frames = bytes(body[:4])
        kinds.append(kind)
        count = len(pieces) // 2
        check_segments(len(kinds) - count, "chunks beside those of its pixels", limits)
        if count > limits.max_data_chunks:
            raise too_large(
                f"the PNG has more than {limits.max_data_chunks} IDAT chunks: write it anew, or "
                "raise the service's --max-image-data-chunks"
            )
    _check_animation(frames, kinds)
    keyed = transparency if b"tRNS" in kinds else None
    return _file(header, palette, keyed, data, pieces)


def _chunk(data: memoryview, at: int) -> tuple[bytes, memoryview, int]:
    """The type and body of the chunk at `at`, and where the next one begins [5.3]."""
    if at + 12 > len(data):
        raise invalid(f"the PNG is truncated: it ends after {len(data)} bytes, without IEND")
    (length,) = struct.unpack_from(">I", data, at)
    kind, end = bytes(data[at + 4 : at + 8]), at + 12 + length
    if end > len(data):
        raise invalid(
            f"the PNG is truncated: chunk {kind!r} at byte {at} has {length} bytes, and the file "
            f"ends after {len(data)}"
        )
    (checksum,) = struct.unpack_from(">I", data, end - 4)
    if zlib.crc32(data[at + 4 : end - 4]) != checksum:
        raise invalid(f"the PNG is corrupt: chunk {kind!r} at byte {at} has a wrong checksum")
    if not kind.isalpha() or not _is_sound(kind, data[at + 8 : end - 4]):
        raise invalid(f"the PNG is corrupt: chunk {kind!r} at byte {at} is not as the format says")
    # Upper case says that who does not know it cannot read the image [5.4].
    if kind[0] & 0x20 == 0 and kind not in _CRITICAL:
        raise unsupported(f"the PNG has a chunk {kind!r} that is in no version of the format")
    return kind, data[at + 8 : end - 4], end


def _is_sound(kind: bytes, body: memoryview) -> bool:
    """Whether metadata is what its kind must be, as far as that shows without unpacking it."""
    if kind in _COMPRESSED:
        _, separator, rest = bytes(body[: _NAME_BYTES + 2]).partition(b"\0")
        return bool(separator) and rest[:1] == b"\0"  # the one method of compression
    return len(body) == _SIZES.get(kind, len(body))


def _header(kind: bytes, body: memoryview, limits: ImageLimits) -> bytes:
    if kind != b"IHDR" or len(body) != 13:
        raise invalid(f"the PNG is corrupt: it begins with {kind!r} of {len(body)} bytes, no IHDR")
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", body)
    check_size(height, width, limits)
    if depth not in _DEPTHS.get(colour, ()) or rest not in ([0, 0, 0], [0, 0, 1]):
        raise invalid(
            f"the PNG is corrupt: depth {depth}, colour type {colour}, compression, filter and "
            f"interlace method {rest} are not in the format"
        )
    if depth > 8:
        raise unsupported(
            f"the PNG has {depth} bits a channel; reduce it to 8 in the way the score should see"
        )
    return bytes(body)


def _check_animation(frames: bytes, kinds: list[bytes]) -> None:
    if len(frames) < 4:
        return
    (count,) = struct.unpack(">I", frames)
    # Where no fcTL comes before IDAT, the image is one more than the frames are [11.3.7.1].
    if count and b"fcTL" not in kinds[: kinds.index(b"IDAT") if b"IDAT" in kinds else None]:
        count += 1
    if count > 1:
        raise unsupported(f"the PNG is an animation of {count} frames; send one frame")


def _file(
    header: bytes, palette: bytes, transparency: bytes | None, data: memoryview, pieces: list[int]
) -> PngFile:
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    if not pieces:
        raise invalid("the PNG is corrupt: it has no pixels (no IDAT chunk)")
    if colour == _PALETTE and (len(palette) % 3 or not 3 <= len(palette) <= 768):
        raise invalid(f"the PNG is corrupt: its palette has {len(palette)} bytes")
    if transparency is not None:
        sizes = {
            _GRAY: [2],
            _RGB: [6],
            _PALETTE: range(len(palette) // 3 + 1),
        }
        if len(transparency) not in sizes.get(colour, [len(transparency)]):
            raise invalid(f"the PNG is corrupt: its tRNS chunk has {len(transparency)} bytes")
    return PngFile(
        height, width, depth, colour, bool(interlace), palette, transparency, data, pieces
    )


def _stored(rows: bytes) -> bytes:
    """`rows` as a zlib stream that is not compressed, for Pillow's decoder."""
    view = memoryview(rows)
    cuts = [*range(0, len(rows), _STORED_BYTES), len(rows)]
    blocks: list[bytes | memoryview] = [b"\x78\x01"]
    for start, stop in pairwise(cuts):
        size = stop - start
        blocks += [struct.pack("<BHH", stop == len(rows), size, size ^ 0xFFFF), view[start:stop]]
    return b"".join([*blocks, struct.pack(">I", zlib.adler32(rows))])


def _transparent() -> Exception:
    return unsupported(
        "the PNG has transparent pixels; lay it on a background first, for instance with "
        "PIL.Image.alpha_composite"
    )
