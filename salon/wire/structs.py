"""Python mappings to protobuf's Struct and back: exactly, or not at all.

A Struct holds every number as a double. protobuf's own `MessageToDict` refuses NaN and infinities,
which a reward's details may well hold.
"""

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

MAX_DEPTH = 32
"""Most containers within one another; protobuf reads hardly more."""
_SHOWN = 40  # characters of a key or value, in errors


def to_struct(mapping: Mapping[str, Any]) -> Struct:
    """`mapping` (str keys; None, bool, numbers, str, lists, mappings as values) as a Struct.

    Raises:
        TypeError, ValueError: something in it would arrive as something else, such as an integer
            beyond 2^53 that no double holds; it says where that is, what, and the way out.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"it is {_called(mapping)}, not a mapping")
    _check(mapping, "", 0)
    struct = Struct()
    struct.update(_as_dicts(mapping))
    return struct


def to_dict(struct: Struct) -> dict[str, Any]:
    """`struct` as plain Python; whole numbers come back as int: a Struct holds floats."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def _check(value: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where[:_SHOWN]}…: more than {MAX_DEPTH} containers in one another")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{_at(where)}key {key!r:.{_SHOWN}} is no text: pass str(key)")
            _check_text(key, where)
            _check(item, f"{where}.{key:.{_SHOWN}}" if where else f"{key:.{_SHOWN}}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        _check_integer(value, where)
    elif isinstance(value, str):
        _check_text(value, where)
    elif not isinstance(value, float | bool | None):
        raise TypeError(
            f"{_at(where)}{_called(value)} has no form in JSON: pass a text, a number that "
            "Python's own int or float holds, a bool, None, a list or a dict"
        )


def _as_dicts(value: Any) -> Any:
    """`value` with its mappings as dicts, the only ones that protobuf knows."""
    if isinstance(value, Mapping):
        return {key: _as_dicts(item) for key, item in value.items()}
    return [_as_dicts(item) for item in value] if isinstance(value, list | tuple) else value


def _check_integer(value: int, where: str) -> None:
    try:
        exact = int(float(value)) == value
    except OverflowError:
        exact = False
    if not exact:
        # Thousands of digits would raise on their own.
        shown = str(value) if value.bit_length() < 128 else f"of {value.bit_length()} bits"
        raise ValueError(
            f"{_at(where)}the integer {shown} is beyond 2^53 and would arrive as another one: pass "
            "it as a text"
        )


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{_at(where)}{value!r:.{_SHOWN}} is no Unicode text: {error}") from None


def _called(value: object) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"a value of type {name}"


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return to_dict(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "number_value":
        return _number(value.number_value)
    return None if kind in (None, "null_value") else getattr(value, kind)


def _number(number: float) -> int | float:
    # There is no integer -0.
    negative_zero = number == 0 and math.copysign(1.0, number) < 0
    return int(number) if number.is_integer() and not negative_zero else number
