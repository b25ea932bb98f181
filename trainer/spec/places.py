"""Where the paths that a job spec names are looked for."""

import difflib
import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")

_MODELS = ("model_index.json", "config.json")  # a pipeline's, and that of a model of transformers
NAMED = 3  # models, of those that may have been meant


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
    try:
        Path(model).is_dir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            yield f"{key}: {model!r:.100} is no folder: {error.strerror}"
            return
    if Path(model).is_absolute():
        return
    places = looked_for(model, folders)
    id_ = _HUB_ID.fullmatch(model)
    if id_ is None:
        yield f"{key}: no folder {model!r} (looked for {places}), and a hub id is owner/name"
    elif near := _meant(folders, *id_.groups()):
        yield (
            f"{key}: no folder {model!r} (looked for {places}), though there is "
            f"{' and '.join(near)}; if it is meant as a hub id, submit where there is no such "
            "folder"
        )


def _meant(folders: Sequence[Path], owner: str, name: str) -> list[str]:
    """What may have been meant by `owner/name`: it lies in `owner` and is called much the same.

    Or, whatever it is called, it is a model there. A folder that is but called as an organisation
    on the hub says nothing.
    """
    for parent in dict.fromkeys(folder / owner for folder in folders):
        try:
            names = sorted(path.name for path in parent.iterdir())
        except OSError:  # not there, no folder, or closed to us
            continue
        near = difflib.get_close_matches(name, names, n=1)
        models = [known for known in names if any((parent / known / f).is_file() for f in _MODELS)]
        likest = difflib.get_close_matches(name, models, n=NAMED, cutoff=0)
        if near or likest:
            return [str(parent / found) for found in near or likest]
    return []
