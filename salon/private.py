"""Folders and files that are their user's alone."""

import os
import stat
from pathlib import Path

from salon.errors import InvalidRequest


def make_private(folder: Path) -> None:
    """Make `folder` if it is not there, for its user alone; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def require_own(folder: Path) -> None:
    """Refuse a state folder whose files others may have written; one that is not there is fine.

    Raises:
        InvalidRequest: it is another user's, or others may write into it.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    way_out = "set SALON_STATE_DIR to a folder of your own"
    if found.st_uid != os.geteuid():
        raise InvalidRequest(
            f"the state folder {folder} belongs to user {found.st_uid}, and this is user "
            f"{os.geteuid()}: {way_out}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidRequest(
            f"others may write into the state folder {folder} (mode "
            f"{stat.S_IMODE(found.st_mode):o}): chmod go-w {folder}, or {way_out}"
        )


def write_private(path: Path, text: str) -> None:
    """Replace the file `path`, in one step, by one that its user alone may read."""
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)
    with open(aside, "x", opener=_for_its_user) as file:
        file.write(text)
    aside.replace(path)


def append_privately(path: Path) -> int:
    """A descriptor of `path`, to append to; made, if it is not there, for its user alone."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def follow(folder: Path) -> None:
    """What this process makes from now on is as closed to others as `folder`, or more."""
    mask = os.umask(0o077)
    os.umask(mask | ~folder.stat().st_mode & 0o077)


def _for_its_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
