"""What `prompts` of a job spec may name in one string: a set, a text file, a function."""

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from salon.errors import InvalidRequest
from salon.own_modules import namesake, searched
from trainer.spec.places import find, looked_for
from trainer.spec.prompts.sets import prompt_set, read_lines, set_names

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_named(source: str) -> bool:
    """Whether it is the name of a set or a function, which no file may go by as well."""
    return source in set_names() or _FUNCTION.fullmatch(source) is not None


def resolve_prompts(source: str, folders: Sequence[Path]) -> list[str]:
    """The prompts that `source` stands for.

    Args:
        source: the name of a set (`animals`), the path of a text file with one prompt a line, or
            `module:function`, a function without arguments that returns a list of strings.
        folders: where a file is looked for, in this order; a module is looked for where Python
            looks, then in them.

    Raises:
        InvalidRequest: it is none of them, or both a file and one of the others: a set's name must
            mean the same in every folder.
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
        return prompt_set(source) if source in set_names() else _call(source, folders)
    if path is None:
        raise InvalidRequest(
            f"no prompt file {source!r} (looked for {looked_for(source, folders)}), and no prompt "
            f"set of this name; there are {', '.join(set_names())}"
        )
    return read_lines(path)


def _call(source: str, folders: Sequence[Path]) -> list[str]:
    function = _find(source, folders)
    try:
        prompts = function()
    except Exception as error:
        raise InvalidRequest(f"prompts: {source} raised {type(error).__name__}: {error}") from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest(
            f"{source} must return a list of strings; it returned {prompts!r:.100}"
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
