"""Folders and files that are their user's alone."""

import os
from pathlib import Path


def make_private(folder: Path) -> None:
    """Make `folder` if it is not there, for its user alone; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


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
