"""Folders and files that are their user's alone."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from salon.errors import InvalidRequest


def make_private(folder: Path) -> None:
    """Make `folder` if it is not there, for its user alone; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def make_usable(folder: Path, setting: str) -> None:
    """`make_private` of a folder that the user named, to write into.

    Args:
        folder: the folder.
        setting: what names it, such as SALON_RUNS_DIR.

    Raises:
        InvalidRequest: it cannot be made, or this user may not write into it.
    """
    reason = ""
    try:
        make_private(folder)
    except OSError as error:
        reason = _obstacle(folder) or f"cannot be made: {error.strerror}"
    else:
        if not os.access(folder, os.W_OK | os.X_OK):
            reason = f"cannot be written by user {os.geteuid()}"
    if reason:
        raise InvalidRequest(
            f"{setting} is {folder.absolute()}, which {reason}: set it to a folder of your own"
        )


def _obstacle(folder: Path) -> str:
    """What is in its place, or on the way there; empty if nothing is."""
    with suppress(OSError):  # as of a name that is too long
        if folder.is_symlink() and not folder.exists():
            return f"is a link to {folder.readlink()}, where nothing is"
        for place in (folder, *folder.parents):
            if place.exists() and not place.is_dir():
                return "is no folder" if place == folder else f"lies in {place}, which is none"
    return ""


def require_own(folder: Path) -> None:
    """Refuse a state folder whose files others may have written; one that is not there is fine.

    Raises:
        InvalidRequest: it is no folder or another user's, or others may write into it.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    way_out = "set SALON_STATE_DIR to a folder of your own"
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidRequest(f"the state folder {folder} is no folder: {way_out}")
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
