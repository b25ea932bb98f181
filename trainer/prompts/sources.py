"""What `prompts` of a job spec may name in one string: a set, a text file, a function."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

from salon.errors import InvalidRequest
from salon.own_modules import come_last, namesake
from trainer.prompts.sets import prompt_set, read_lines, set_names

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def resolve_prompts(source: str) -> list[str]:
    """The prompts that `source` stands for.

    Args:
        source: the name of a set (`animals`), the path of a text file with one prompt a line, or
            `module:function`, a function without arguments that returns a list of strings. The
            module is looked for where Python looks, then in the working directory.

    Raises:
        InvalidRequest: it is none of them, or both a file and one of the others: a set's name must
            mean the same in every folder.
    """
    named = source in set_names()
    function = _FUNCTION.fullmatch(source) is not None
    if (named or function) and Path(source).is_file():
        other = "a prompt set" if named else "a function"
        raise InvalidRequest(
            f"{source!r} is {other} and a file in {Path.cwd()}, too: write ./{source} for the file,"
            " or rename it"
        )
    if named:
        return prompt_set(source)
    if function:
        return _call(source)
    path = Path(source)
    if not path.is_file():
        raise InvalidRequest(
            f"no prompt file {source!r} (looked for {path.absolute()}), and no prompt set of this "
            f"name; there are {', '.join(set_names())}"
        )
    return read_lines(path)


def _call(source: str) -> list[str]:
    function = _find(source)
    try:
        prompts = function()
    except Exception as error:
        raise InvalidRequest(f"prompts: {source} raised {type(error).__name__}: {error}") from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest(
            f"{source} must return a list of strings; it returned {prompts!r:.100}"
        )
    return prompts


def _find(source: str) -> Callable[[], object]:
    module, _, name = source.partition(":")
    come_last()
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise InvalidRequest(
            f"cannot import {module!r} for prompts {source!r} in {Path.cwd()}: "
            f"{type(error).__name__}: {error}"
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        raise InvalidRequest(
            f"{module} has no function {name!r}, which prompts ask for{namesake(found)}"
        )
    return cast("Callable[[], object]", function)
