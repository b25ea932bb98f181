"""Room for decoded pixels: how many all calls together hold, and decode at once.

A call takes room for an image by what its header says, before it is decoded, and gives it back once
the image is scored or has turned out to be none. Who waits for room holds none, and who decodes
waits for nothing: so somebody always goes on. Those who wait are served in the order in which they
came, images of a usual size apart from large ones, so that these do not hold up everybody; and few
calls may wait for room for a large one, or they would take the places of all others. Who has room
may wait for its turn to decode: room bounds how many those are.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from salon.errors import Overloaded
from services.scoring.call import Call
from services.scoring.limits import LARGE_WAITING

SLICE_PIXELS = 2 * 4096 * 4096
"""Most decoded pixels held at once for one call, 100 MB of RGB: a 16 MB message of well-compressed
PNG files could otherwise unpack to many gigabytes."""

HELD_PIXELS = 2 * SLICE_PIXELS
"""Most decoded pixels held at once for all calls together, of usual and of large images each."""

USUAL_PIXELS = 1536 * 1536
"""Largest image that does not count as large."""

USUAL_AT_ONCE = 8 * 1024 * 1024
"""Most pixels of usual images decoded at once: 32 of 512 x 512. Decoding takes up to 23 bytes a
pixel, for WebP."""

LARGE_AT_ONCE = 4096 * 4096
"""Most pixels of large images decoded at once: one of the largest."""

RETRY_SECONDS = 1.0  # a hint to callers who are one too many
CHECK_SECONDS = 0.5  # how soon a call that waits for room notices that nobody waits for it


class DecodedPixels:
    """How many pixels all calls together hold and decode."""

    def __init__(self, most: int = HELD_PIXELS, large_waiting: int = LARGE_WAITING) -> None:
        """Be full at `most`, of usual and of large images each; one image alone always has room.

        Args:
            most: pixels.
            large_waiting: most calls that wait for room for a large image.
        """
        self._usual = _Room(most), _Room(USUAL_AT_ONCE)
        self._large = _Room(most, large_waiting), _Room(LARGE_AT_ONCE)

    def held(self) -> int:
        """How many are held now."""
        return self._usual[0].taken + self._large[0].taken

    def try_take(self, pixels: int) -> bool:
        """Take room for an image of so many pixels, if there is some and nobody waits for it."""
        return self._rooms(pixels)[0].try_take(pixels)

    def take(self, pixels: int, call: Call) -> None:
        """Take room for an image of so many pixels; who calls this must hold none.

        Raises:
            DeadlineExceeded: the call was given up meanwhile; nothing was taken.
            Overloaded: too many calls wait for room for a large image already, and this one is not
                bound to finish.
        """
        self._rooms(pixels)[0].take(pixels, call.check_wanted, refusable=not call.must_finish)

    def give_back(self, pixels: int) -> None:
        """Give back the room of an image of so many pixels."""
        self._rooms(pixels)[0].give_back(pixels)

    @contextmanager
    def decoding(self, pixels: int, call: Call) -> Iterator[None]:
        """Within, an image of so many pixels, for which there is room, is decoded.

        Raises:
            DeadlineExceeded: the call was given up before its turn came.
        """
        turns = self._rooms(pixels)[1]
        turns.take(pixels, call.check_wanted)
        try:
            yield
        finally:
            turns.give_back(pixels)

    def _rooms(self, pixels: int) -> "tuple[_Room, _Room]":
        return self._usual if pixels <= USUAL_PIXELS else self._large


class _Room:
    """Room for so many, taken in the order in which it was asked for."""

    def __init__(self, most: int, max_waiting: float = float("inf")) -> None:
        self.taken = 0
        self._most = most
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    def try_take(self, count: int) -> bool:
        with self._changed:
            if self._waiting or not self._has(count):
                return False
            self.taken += count
            return True

    def take(self, count: int, check: Callable[[], None], *, refusable: bool = False) -> None:
        """Wait for room; `check` is asked now and then, and may raise."""
        place = object()
        with self._changed:
            if refusable and len(self._waiting) >= self._max_waiting:
                raise Overloaded(
                    f"{len(self._waiting)} calls wait for room for an image of more than "
                    f"{USUAL_PIXELS} pixels, as many as may: wait, send smaller images, or raise "
                    "the service's --max-large-waiting",
                    RETRY_SECONDS,
                )
            self._waiting.append(place)
            try:
                while not self._changed.wait_for(
                    lambda: self._waiting[0] is place and self._has(count), CHECK_SECONDS
                ):
                    check()
                self.taken += count
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()

    def give_back(self, count: int) -> None:
        with self._changed:
            self.taken -= count
            self._changed.notify_all()

    def _has(self, count: int) -> bool:
        return not self.taken or self.taken + count <= self._most
