"""Named prompt sets: the text files beside this module, each with its source in its first lines."""

from pathlib import Path

from salon.errors import InvalidRequest

_FOLDER = Path(__file__).parent


def set_names() -> list[str]:
    """The names of all sets, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


def prompt_set(name: str) -> list[str]:
    """The prompts of the set `name`, in the order of its source.

    Raises:
        InvalidRequest: no set has this name; the message lists those there are.
    """
    if name not in set_names():
        raise InvalidRequest(f"no prompt set {name!r}; there are {', '.join(set_names())}")
    return read_lines(_FOLDER / f"{name}.txt")


def read_lines(path: Path) -> list[str]:
    """The prompts of a text file: a line each, without empty lines and those that start with #.

    A line ends with a line feed, before which a carriage return may stand, and nowhere else: what
    Unicode calls a separator of lines is part of a prompt.

    Raises:
        InvalidRequest: the file cannot be read, or is not UTF-8.
    """
    try:
        lines = path.read_bytes().decode().split("\n")
    except OSError as error:
        raise InvalidRequest(f"cannot read prompt file {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"prompt file {str(path)!r} is not UTF-8: {error}") from None
    # Windows writes a mark first; where files were joined it stands further down.
    lines = [line.removeprefix("\ufeff") for line in lines]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
