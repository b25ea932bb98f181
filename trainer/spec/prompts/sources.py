"""What `prompts` of a job spec may name in one string: a set, a file, a function."""

import codecs
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from salon.errors import InvalidRequest
from salon.own_modules import namesake, searched
from trainer.spec.places import find, looked_for
from trainer.spec.prompts.sets import prompt_set, read_lines, set_names

MAX_JSONL_BYTES = 16 * 1024 * 1024  # as of a spec, in which its rows end up
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_named(source: str) -> bool:
    """Whether it is the name of a set or a function, which no file may go by as well."""
    return source in set_names() or _FUNCTION.fullmatch(source) is not None


def resolve_prompts(source: str, folders: Sequence[Path]) -> list[str | Mapping[str, Any]]:
    """The prompts that `source` stands for: texts, and mappings that should be rows.

    Args:
        source: the name of a set (`animals`), the path of a text file with one prompt a line, that
            of a JSONL file with one row a line, or `module:function`, a function without arguments
            that returns a list of both.
        folders: where a file is looked for, in this order; a module is looked for where Python
            looks, then in them. A reference in a JSONL file is looked for beside that file first.

    Raises:
        InvalidRequest: it is none of them, or both a file and one of the others: a set's name must
            mean the same in every folder. Or a reference is nowhere.
    """
    path = find(source, folders)
    if path is not None and not path.is_file():
        path = None
    if is_named(source):
        if path is not None:
            other = "a prompt set" if source in set_names() else "a function"
            raise InvalidRequest(
                f"{source!r} is {other} and a file in {path.parent}, too: write ./{source} for the "
                "file, or rename it"
            )
        if source in set_names():
            return [*prompt_set(source)]
        return _with_places(_call(source, folders), source, folders)
    if path is None:
        raise InvalidRequest(
            f"no prompt file {source!r} (looked for {looked_for(source, folders)}), and no prompt "
            f"set of this name; there are {', '.join(set_names())}"
        )
    if path.suffix.lower() == ".jsonl":
        return _with_places(_read_jsonl(path), str(path), (path.parent, *folders))
    return [*read_lines(path)]


def _read_jsonl(path: Path) -> list[Any]:
    """The JSON value of each line that is not empty.

    Raises:
        InvalidRequest: the file cannot be read, is too large, or a line of it is no JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSONL_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot read prompt file {str(path)!r}: {error.strerror}") from None
    if len(data) > MAX_JSONL_BYTES:
        raise InvalidRequest(
            f"prompt file {str(path)!r} has more than {MAX_JSONL_BYTES // 1024**2} MiB, the most "
            "that a job keeps of rows: leave some out"
        )
    values = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line.decode(), object_pairs_hook=_without_repetition))
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(
                    f"prompt file {str(path)!r}, line {number} is no row in JSON, such as "
                    f'{{"prompt": "a cat", "metadata": {{}}}}: {error}'
                ) from None
    return values


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"duplicate key {key!r:.100}")
        values[key] = value
    return values


def _with_places(rows: list[Any], source: str, folders: Sequence[Path]) -> list[Any]:
    """The rows with absolute paths of their references.

    Raises:
        InvalidRequest: one of them is nowhere.
    """
    placed = []
    for index, row in enumerate(rows):
        reference = row.get("reference") if isinstance(row, Mapping) else None
        if isinstance(reference, str):
            found = find(reference, folders)
            if found is None:
                raise InvalidRequest(
                    f"{source}, row {index}: cannot read reference {reference}: No such file; "
                    f"looked for {looked_for(reference, folders)}"
                )
            placed.append({**row, "reference": str(found)})
        else:
            placed.append(row)
    return placed


def _call(source: str, folders: Sequence[Path]) -> list[Any]:
    function = _find(source, folders)
    try:
        prompts = function()
    except Exception as error:
        raise InvalidRequest(f"prompts: {source} raised {type(error).__name__}: {error}") from error
    if not isinstance(prompts, list) or not all(isinstance(row, str | Mapping) for row in prompts):
        raise InvalidRequest(
            f"{source} must return a list of strings and rows; it returned {prompts!r:.100}"
        )
    return prompts


def _find(source: str, folders: Sequence[Path]) -> Callable[[], object]:
    module, _, name = source.partition(":")
    try:
        with searched(folders):
            found = importlib.import_module(module)
    except Exception as error:
        raise InvalidRequest(
            f"cannot import {module!r} for prompts {source!r} in "
            f"{looked_for('', folders)}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        raise InvalidRequest(
            f"{module} has no function {name!r}, which prompts ask for{namesake(found)}"
        )
    return cast("Callable[[], object]", function)
