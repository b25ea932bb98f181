"""Modules of the user's own, in the working folder: found, but after Salon's and every library's.

Python puts the working folder first for `python -m`, and Celery for whatever it imports: a
`trainer.py` or a `redis.py` that lies there would run in place of ours or of the library.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PROGRAM = "_SALON_PROGRAM"
"""In the environment: what the user called, for the help of the module that it became."""
_SALON = Path(__file__).resolve().parents[1]


def python(module: str, *arguments: str) -> list[str]:
    """The command `python -m module arguments`, with which every process of Salon's starts."""
    return [sys.executable, "-P", "-m", module, *arguments]


def come_last() -> None:
    """Have the working folder searched last, in this process and in those that it starts.

    Not at the end of `sys.path`: a checkout that is installed in place is found after that.
    """
    sys.path[:] = _without_working_folder(sys.path)
    # What `export PYTHONPATH=$PYTHONPATH:.` leaves there would be first for our children.
    path = _without_working_folder(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    finders = [finder for finder in sys.meta_path if not isinstance(finder, _OwnFolders)]
    if not any(finder.find_spec("salon", None) for finder in finders):
        path.append(str(_SALON))  # not installed: run from the folder that it lies in
    os.environ.pop("PYTHONPATH", None)
    if path:
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    sys.meta_path[:] = [*finders, _OwnFolders(())]


@contextmanager
def searched(folders: Sequence[Path]) -> Iterator[None]:
    """Within, `folders` and the working folder are searched too, in this order, last of all."""
    finder = _OwnFolders(folders)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def namesake(module: ModuleType) -> str:
    """A remark for errors: that another module of that name lies in the working folder unseen.

    Empty where there is none.
    """
    name = module.__name__.rpartition(".")[2]
    spec = PathFinder.find_spec(name, [str(Path.cwd())])
    if spec is None or spec.origin is None or spec.origin == module.__file__:
        return ""
    return (
        f"; {spec.origin} is not it: Salon's modules and those of libraries come first, so give "
        "yours a name that none of them has"
    )


class _OwnFolders:
    """The last of `sys.meta_path`."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Search `folders`, then the working folder."""
        self._folders = [str(folder.absolute()) for folder in folders]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:  # inside a package, which says itself where it lies
            return None
        try:
            return PathFinder.find_spec(name, [*self._folders, str(Path.cwd())], target)
        except FileNotFoundError:  # it has been deleted
            return None


def _without_working_folder(entries: Sequence[str]) -> list[str]:
    try:
        here = Path.cwd().resolve()
    except FileNotFoundError:  # it has been deleted
        return [entry for entry in entries if entry]
    return [entry for entry in entries if entry and Path(entry).resolve() != here]
