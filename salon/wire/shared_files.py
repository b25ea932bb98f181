"""Images by reference: on one host a batch lies in a shared directory and only its name travels.

The directory is best one in memory (tmpfs, such as /dev/shm). Callers and services run as one user:
files are readable by their owner alone, and nothing of another owner is read.
"""

import errno
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from salon.errors import InvalidRequest, Overloaded, SharedFileUnavailable
from salon.wire.images import Buffer
from salon.wire.shared_owner import Owner, create, tidy

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Largest shared file that is read."""
TIDY_SECONDS = 60.0
"""How often a writer looks for the files of writers that died."""

_BARE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MARKER_NAME = re.compile(r"salon-marker-[0-9a-f]{32}")


@dataclass(frozen=True)
class SharedFile:
    """A file that a caller wrote."""

    path: Path
    offsets: tuple[int, ...]
    """Where each of the buffers begins."""
    size: int
    """Bytes of them all."""
    owner: Owner = field(repr=False)
    """Lives as long as this file is known to its writer."""

    def read(self) -> bytes:
        """What it holds.

        Raises:
            SharedFileUnavailable: it is gone, or cannot be read.
        """
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise SharedFileUnavailable(f"shared file {self.path} is gone") from None
        except OSError as error:
            raise SharedFileUnavailable(f"shared file {self.path}: {error.strerror}") from None

    def delete(self) -> None:
        """Give back its room, if that is possible; a second time is no error."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:  # it stays until this process has ended
            log.warning("cannot delete the shared file %s: %s", self.path, error.strerror)


class SharedDirectory:
    """The directory, for those who write into it and for those who read."""

    def __init__(self, root: Path) -> None:
        """Make the directory if it is missing, and delete what dead writers left in it.

        Args:
            root: the directory, alone under the control of the user this process runs as; or one
                like /dev/shm, in which everybody writes and nobody touches the files of others.

        Raises:
            InvalidRequest: it is no directory, cannot be made or listed, or others may put files of
                theirs in the place of ours.
        """
        self._root = root
        self._lock = threading.Lock()
        self._owner: Owner | None = None  # for those who write
        self._tidied = time.monotonic()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_private(root)
            tidy(root)
        except OSError as error:
            raise InvalidRequest(
                f"cannot use {root} as shared directory: {error.strerror or error}; choose another "
                "SALON_SHARED_DIR or --shared-dir"
            ) from None

    def marker(self) -> str:
        """The name of a file by which a caller knows that this directory is its own as well.

        It is made if there is none.

        Raises:
            InvalidRequest: none is there and none can be made.
        """
        for entry in sorted(self._root.glob("salon-marker-*")):
            if self.sees(entry.name):
                return entry.name
        name = f"salon-marker-{secrets.token_hex(16)}"
        try:
            os.close(create(self._root / name))
        except OSError as error:
            raise InvalidRequest(f"cannot write into {self._root}: {error.strerror}") from None
        return name

    def sees(self, marker: str) -> bool:
        """Whether the file `marker` of a service is in this directory, with the same owner."""
        if not _MARKER_NAME.fullmatch(marker):
            return False
        try:
            found = os.lstat(self._root / marker)
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()

    def write(self, buffers: Sequence[Buffer]) -> SharedFile:
        """Write `buffers` one behind the other into a new file.

        It is there until it is deleted or this process ends; then the next writer deletes it.

        Raises:
            Overloaded: the directory has no room.
            SharedFileUnavailable: it cannot be written for another reason.
        """
        offsets = []
        size = 0
        for buffer in buffers:
            offsets.append(size)
            size += len(buffer)
        try:
            owner = self._tidy_owner()
            path = owner.new_file()
            _write(path, buffers)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Overloaded(
                    f"no room for {size} bytes in {self._root}: make it larger, keep fewer bytes "
                    "in flight (SALON_PENDING_BYTES), or unset SALON_SHARED_DIR"
                ) from None
            raise SharedFileUnavailable(
                f"cannot write into {self._root}: {error.strerror}; repair it, or unset "
                "SALON_SHARED_DIR"
            ) from None
        return SharedFile(path, tuple(offsets), size, owner)

    @contextmanager
    def open(self, name: str) -> Iterator[memoryview]:
        """What the file `name` holds, read-only.

        It is read, not mapped: a caller that cuts a mapped file short kills its reader (SIGBUS),
        one that writes on changes pixels already checked. Nor is it slower: 6 MB of tmpfs took
        0.18 ms, and touching every page of a mapping 0.31 ms.

        Raises:
            SharedFileUnavailable: there is no such file, or it belongs to another user.
            InvalidRequest: `name` is not a bare name, or what it names no regular file, or too big.
        """
        if not _BARE_NAME.fullmatch(name):
            raise InvalidRequest(
                f"shared_file {name[:80]!r} is no bare file name of letters, digits, '.', '_', '-'"
            )
        try:
            # Not blocking: opening a named pipe would wait for its writer without end.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._root / name, flags)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise InvalidRequest(f"shared_file {name} is not a regular file") from None
            raise SharedFileUnavailable(
                f"shared_file {name}: {error.strerror}; send the pixels inline"
            ) from None
        try:
            self._check(name, os.fstat(descriptor))
            data = _read(descriptor, MAX_FILE_BYTES)
        finally:
            os.close(descriptor)
        yield memoryview(data)

    def _check(self, name: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise InvalidRequest(f"shared_file {name} is not a regular file")
        if found.st_uid != os.geteuid():
            raise SharedFileUnavailable(
                f"shared_file {name} belongs to user {found.st_uid}, the service runs as "
                f"{os.geteuid()}: run both as one user, or send the pixels inline"
            )
        if found.st_size > MAX_FILE_BYTES:
            raise InvalidRequest(
                f"shared_file {name} has {found.st_size} bytes, at most {MAX_FILE_BYTES} are read: "
                "send fewer images per call"
            )

    def _tidy_owner(self) -> Owner:
        """Who writes here; now and then, the files of others who are dead are deleted first."""
        with self._lock:
            if self._owner is None:
                self._owner = Owner(self._root)
            if time.monotonic() - self._tidied > TIDY_SECONDS:
                self._tidied = time.monotonic()
                tidy(self._root)
            return self._owner


def _check_private(root: Path) -> None:
    """Refuse a directory, or what a link leads to, in which others may delete or rename files."""
    found = root.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    way_out = (
        "name one of this user's own, such as a folder in it, which is made with mode 700, in "
        "SALON_SHARED_DIR or --shared-dir"
    )
    if found.st_uid not in (os.geteuid(), 0):
        raise InvalidRequest(
            f"shared directory {root} belongs to user {found.st_uid}, and this process runs as "
            f"{os.geteuid()}: {way_out}"
        )
    mode = stat.S_IMODE(found.st_mode)
    # In a sticky one, such as /dev/shm, only its owner moves a file, and names tell whose it is.
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        raise InvalidRequest(
            f"others may write into the shared directory {root} (mode {mode:o}): chmod 700 {root}, "
            f"or {way_out}"
        )


def _write(path: Path, buffers: Sequence[Buffer]) -> None:
    """A whole file, or none."""
    try:
        with os.fdopen(create(path), "wb") as file:
            for buffer in buffers:
                file.write(buffer)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            path.unlink(missing_ok=True)
        raise


def _read(descriptor: int, limit: int) -> bytes:
    """The file as it is now, up to `limit` bytes; one system call takes at most 2 GiB."""
    size = min(os.fstat(descriptor).st_size, limit)
    data = os.pread(descriptor, size, 0)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), len(data))):
        data += more
    return data
