"""Where the paths that a job spec names are looked for."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")


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


def missing_model(key: str, model: str, folders: Sequence[Path]) -> Iterator[str]:
    """What is wrong with a model that lies in no folder and is no hub id; one line, or none."""
    if Path(model).is_absolute():
        return
    places = looked_for(model, folders)
    id_ = _HUB_ID.fullmatch(model)
    if id_ is None:
        yield f"{key}: no folder {model!r} (looked for {places}), and a hub id is owner/name"
    elif near := _resembling(folders, *id_.groups()):
        yield (
            f"{key}: no folder {model!r} (looked for {places}), though there is {near}; if it "
            "is meant as a hub id, submit where there is none so like it"
        )


def _resembling(folders: Sequence[Path], owner: str, name: str) -> Path | None:
    """What may have been meant by `owner/name`: it lies in `owner`, and is called much the same.

    A folder that is but called as an organisation on the hub says nothing.
    """
    for parent in (folder / owner for folder in folders):
        names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
        if near := difflib.get_close_matches(name, names, n=1):
            return parent / near[0]
    return None
