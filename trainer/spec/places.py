"""Where the paths that a job spec names are looked for."""

from collections.abc import Sequence
from pathlib import Path


def find(path: str, folders: Sequence[Path]) -> Path | None:
    """The absolute path of what is there in the first of `folders` that has it; None if none has.

    An absolute path, and one that begins with ~, is looked for nowhere else.
    """
    for folder in folders:
        try:
            found = (folder / Path(path).expanduser()).absolute()
            if found.exists():
                return found
        except (OSError, RuntimeError, ValueError):  # too long, no such user, or a NUL in it
            continue
    return None


def looked_for(path: str, folders: Sequence[Path]) -> str:
    """The places of `find`, for an error."""
    try:
        own = Path(path).expanduser()
    except RuntimeError:  # no such user
        return path
    return " or ".join(dict.fromkeys(str((folder / own).absolute()) for folder in folders))
