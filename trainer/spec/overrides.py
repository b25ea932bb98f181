"""`dotted.key=value`: what a command line changes in a job spec."""

import re
from typing import Any

from salon.errors import InvalidRequest
from trainer.spec.yaml import YamlError, parse_value


def apply(values: dict[str, Any], override: str) -> None:
    """Set what `override` names, making the sections on the way there.

    An entry of a list goes by its place, as in `rewards.0.weight=2`. A mapping is merged into the
    section that is there; anything else takes its place.

    Raises:
        InvalidRequest: it is no override, or leads through what has no keys or no such place.
    """
    key, separator, text = override.partition("=")
    parts = re.sub(r"\[(\w+)\]", r".\1", key.strip()).split(".")
    if not separator or not all(parts):
        raise InvalidRequest(f"override {override!r} is not of the form dotted.key=value")
    try:
        value = parse_value(text)
        target: Any = values
        for depth, part in enumerate(parts[:-1]):
            target = _section(target, part, ".".join(parts[:depth]))
        _put(target, parts[-1], value, ".".join(parts[:-1]))
    except YamlError as error:
        raise InvalidRequest(
            f"override {override!r} cannot be applied: its value is no YAML: {error}; put quotes "
            "around a text"
        ) from None
    except LookupError as error:
        raise InvalidRequest(f"override {override!r} cannot be applied: {error.args[0]}") from None


def _section(parent: Any, part: str, where: str) -> Any:
    """What is at `part`; an empty section where there is nothing.

    Raises:
        LookupError: `parent` has no such place.
    """
    if isinstance(parent, list):
        index = _index(parent, part, where)
        if parent[index] is None:
            parent[index] = {}
        return parent[index]
    _require_mapping(parent, where)
    if parent.get(part) is None:
        parent[part] = {}
    return parent[part]


def _put(parent: Any, part: str, value: Any, where: str) -> None:
    if isinstance(parent, list):
        index = _index(parent, part, where)
        parent[index] = _merged(parent[index], value)
        return
    _require_mapping(parent, where)
    parent[part] = _merged(parent.get(part), value)


def _index(entries: list[Any], part: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]+", part):
        raise LookupError(f"Index {part!r} of {where}, a list, is not an int")
    if int(part) >= len(entries):
        raise LookupError(f"{where} has {len(entries)} entries, counted from 0: out of range")
    return int(part)


def _require_mapping(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise LookupError(  # noqa: TRY004 -- of the way to a place, as the others are
            f"{where} is {value!r:.100}, which has no keys"
        )


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}
