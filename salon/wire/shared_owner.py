"""Whose the files of a shared directory are, and whether that process still lives.

A writer holds the lock of a file of its own (flock) for as long as it lives; the kernel lets it go
when the process ends, however that may be. Unlike the number of a process, that also holds between
containers that share the directory.
"""

import fcntl
import os
import re
import secrets
import weakref
from pathlib import Path

_OWNER_NAME = re.compile(r"salon-owner-([0-9a-f]{16})")
# Only names made here are ever deleted: the directory may hold other things.
_BATCH_NAME = re.compile(r"salon-batch-([0-9a-f]{16})-[0-9a-f]{16}")


class Owner:
    """A writer in a shared directory, for as long as this object or its process lives."""

    def __init__(self, root: Path) -> None:
        """Take a new name.

        Raises:
            OSError: nothing can be written into `root`, or it knows no locks.
        """
        while True:
            name = secrets.token_hex(8)
            descriptor = create(_owner_file(root, name))
            release = weakref.finalize(self, os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Between those two steps somebody may have tidied the file away.
            if os.fstat(descriptor).st_nlink:
                break
            release()
        self._root = root
        self._name = name

    def new_file(self) -> Path:
        """A path for one more file of this owner."""
        return self._root / f"salon-batch-{self._name}-{secrets.token_hex(8)}"


def create(path: Path) -> int:
    """A descriptor of a new file that only its user may read."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def tidy(root: Path) -> None:
    """Delete the files of owners that live no more.

    Raises:
        OSError: `root` cannot be listed.
    """
    # Listed once: an owner's own file is there before any other file of it, and longer.
    paths = list(root.iterdir())
    for path in paths:
        if _OWNER_NAME.fullmatch(path.name):
            _delete_if_dead(path)
    for path in paths:
        found = _BATCH_NAME.fullmatch(path.name)
        if found and not _owner_file(root, found[1]).exists():
            _delete(path)


def _owner_file(root: Path, name: str) -> Path:
    return root / f"salon-owner-{name}"


def _delete_if_dead(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone meanwhile, or another user's
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _delete(path)  # with the lock held: an owner that is just taking it sees that it is gone
    except BlockingIOError:
        return  # its owner lives
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, PermissionError):  # another process was faster, or another user's
        return
