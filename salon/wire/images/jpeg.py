"""JPEG files (ITU-T T.81; sections in brackets).

All segments and scans are walked before anything is decoded: from them follows what the decoder's
work will be. A file has no checksum, but its entropy-coded data must end where its last block does:
libjpeg-turbo warns of data that ends early or late, and simplejpeg, unlike Pillow, passes that on.
But it passes on the first warning alone: what of a header would be warned of, and changes no pixel,
is put right before, so that it hides nothing.
"""

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
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

SIGNATURE = b"\xff\xd8\xff"

_PROGRESSIVE = (0xC2, 0xCA)  # with Huffman and with arithmetic coding [table B.1]
_FRAMES = tuple(code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC))
_SCAN, _START, _END = 0xDA, 0xD8, 0xD9
_JFIF, _ADOBE = 0xE0, 0xEE
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_WHOLE_SCAN = b"\x00\x3f\x00"  # Ss, Se, Ah and Al of all scans but progressive ones [table B.3]
# Within entropy-coded data a byte FF is followed by 00 or is a restart marker [B.1.1.5].
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_BEHIND_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

# What libjpeg says of damage; its other warnings are of odd headers, and leave the pixels whole.
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression")
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")


@dataclass(frozen=True)
class JpegFile:
    """A JPEG whose structure holds; nothing of it is decoded yet."""

    height: int
    width: int
    _gray: bool
    _data: memoryview
    """From the first byte to the end marker."""
    _oddities: tuple[tuple[int, bytes], ...]
    """Where a header is odd, and what libjpeg takes it for with a warning."""

    def decode(self) -> NDArray[np.uint8]:
        """Its pixels, uint8 [H, W, C].

        Raises:
            SampleError: INVALID_IMAGE.
        """
        colours = "GRAY" if self._gray else "RGB"
        data = self._without_oddities()
        try:
            return _strictly(data, colours)
        except ValueError as error:
            words = str(error)
        # Some cameras fill up the room before the end marker.
        if found := _EXTRANEOUS.match(words):
            size = int(found[1])
            filled, end = data[-2 - size : -2], data[-2:]
            if not any(filled):
                data = memoryview(b"".join((data[: -2 - size], end)))
                try:
                    return _strictly(data, colours)
                except ValueError as error:
                    words = str(error)
        if words.startswith(_DAMAGE):
            raise invalid(f"the JPEG file is corrupt or truncated: {words}")
        # Whatever else it may be, Pillow decides, which also reads what simplejpeg does not.
        return self._decode_leniently()

    def _without_oddities(self) -> memoryview:
        if not self._oddities:
            return self._data
        data = bytearray(self._data)
        for at, usual in self._oddities:
            data[at : at + len(usual)] = usual
        return memoryview(data)

    def _decode_leniently(self) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(self._data), formats=["JPEG"]) as image:
                image.load()
                pixels = np.asarray(image.convert("L" if self._gray else "RGB"))
        # Its decoder raises whatever it stumbles over.
        except Exception as error:  # noqa: BLE001
            raise invalid(f"the JPEG file is corrupt or truncated: {error}") from None
        return pixels[:, :, None] if self._gray else pixels


def check(data: memoryview, limits: ImageLimits) -> JpegFile:
    """Walk the segments of a file that begins as a JPEG does, up to its first end marker.

    What lies behind, such as the further pictures of a phone's MPO, is not looked at.

    Raises:
        SampleError: INVALID_IMAGE, IMAGE_TOO_LARGE or UNSUPPORTED_IMAGE.
    """
    frame: _Frame | None = None
    oddities: list[tuple[int, bytes]] = []
    segments = scans = 0
    at, marker = 2, _MARKER
    while True:
        found = marker.search(data, at)
        if found is None:
            raise _truncated(data)
        code, at = data[found.end() - 1], found.end()
        if code == _END:
            break
        segments += 1
        check_segments(segments, "segments", limits)
        marker = _MARKER
        if code in _ALONE:
            continue
        body, at = _segment(data, at, code)
        if code in _FRAMES:
            if frame is not None:
                raise invalid("the JPEG is corrupt: it has two frame headers")
            frame = _frame(code, body, limits)
        elif code == _SCAN:
            if frame is None:
                raise invalid("the JPEG is corrupt: a scan comes before the frame header")
            scans += 1
            frame.scan(body)
            if not frame.progressive and bytes(body[-3:]) != _WHOLE_SCAN:
                oddities.append((at - 3, _WHOLE_SCAN))
            _check_work(scans, frame, limits)
            marker = _MARKER_BEHIND_SCAN
        elif code == _JFIF and bytes(body[:5]) == b"JFIF\0" and len(body) >= 14 and body[5] != 1:
            oddities.append((at - len(body) + 5, b"\1"))  # its version
        elif code == _ADOBE and bytes(body[:5]) == b"Adobe" and len(body) >= 12 and body[11] > 1:
            oddities.append((at - len(body) + 11, b"\1"))  # of three channels, 1 means YCbCr
    if frame is None or frame.unseen:
        raise invalid(
            "the JPEG is truncated: "
            + ("it has no frame" if frame is None else f"components {frame.unseen} have no scan")
        )
    return JpegFile(frame.height, frame.width, frame.components == 1, data[:at], tuple(oddities))


class _Frame:
    """What the frame header says, and which components have had no scan yet."""

    def __init__(self, height: int, width: int, identities: bytes, progressive: bool) -> None:
        self.height = height
        self.width = width
        self.components = len(identities)
        self.unseen = list(identities)
        self.progressive = progressive

    def scan(self, body: memoryview) -> None:
        """Read a scan's header [B.2.3]."""
        count = body[0] if body else 0
        if not 1 <= count <= 4 or len(body) != 4 + 2 * count:
            raise invalid("the JPEG is corrupt: the header of a scan has the wrong length")
        # A progressive file begins each component with its DC coefficient, number 0.
        if self.progressive and body[1 + 2 * count] > 0:
            return
        self.unseen = [one for one in self.unseen if one not in body[1 : 1 + 2 * count : 2]]


def _segment(data: memoryview, at: int, code: int) -> tuple[memoryview, int]:
    """The body of the segment whose marker ends at `at`, and where it ends."""
    if code == _START:
        raise invalid("the JPEG is corrupt: another one begins within it")
    if at + 2 > len(data):
        raise _truncated(data)
    (length,) = struct.unpack_from(">H", data, at)
    if length < 2:
        raise invalid(f"the JPEG is corrupt: segment {code:#x} at byte {at} has length {length}")
    if at + length > len(data):
        raise _truncated(data)
    return data[at + 2 : at + length], at + length


def _frame(code: int, body: memoryview, limits: ImageLimits) -> _Frame:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise invalid("the JPEG is corrupt: its frame header has the wrong length")
    depth, height, width, components = struct.unpack_from(">BHHB", body)
    check_size(height, width, limits)
    if depth != 8:
        raise unsupported(
            f"the JPEG has {depth} bits a channel; reduce it to 8 in the way the score should see"
        )
    if components not in (1, 3):
        raise unsupported(
            f"the JPEG has {components} channels" + (" (CMYK)" if components == 4 else "") + "; "
            'convert it in the way the score should see, for instance image.convert("RGB")'
        )
    return _Frame(height, width, bytes(body[6::3]), code in _PROGRESSIVE)


def _check_work(scans: int, frame: _Frame, limits: ImageLimits) -> None:
    if scans > limits.max_scans:
        raise too_large(
            f"the JPEG has more than {limits.max_scans} scans: write it anew, or raise the "
            "service's --max-image-scans"
        )
    if scans * frame.height * frame.width > limits.max_scan_pixels:
        raise too_large(
            f"the JPEG has {scans} scans or more of {frame.height} x {frame.width} pixels, at most "
            f"{limits.max_scan_pixels} pixels in all scans together are accepted: write it anew, "
            "or raise the service's --max-image-scan-pixels"
        )


def _strictly(data: memoryview, colours: str) -> NDArray[np.uint8]:
    """Decoded, unless libjpeg has to warn of anything; the first of its warnings is raised."""
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours)
    return pixels


def _truncated(data: memoryview) -> Exception:
    return invalid(f"the JPEG is truncated: it ends after {len(data)} bytes, without an end marker")
