"""Python mappings to protobuf's Struct and back.

protobuf's own `MessageToDict` refuses NaN and infinities, which a reward's details may well hold.
"""

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value


def to_struct(mapping: Mapping[str, Any]) -> Struct:
    """`mapping` (str keys; None, bool, numbers, str, lists, mappings as values) as a Struct.

    Raises:
        TypeError, ValueError: a key or value that JSON has no word for; the message names it.
    """
    struct = Struct()
    struct.update(mapping)
    return struct


def to_dict(struct: Struct) -> dict[str, Any]:
    """`struct` as plain Python; whole numbers come back as int: a Struct holds floats."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return to_dict(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if math.isfinite(number) and number.is_integer() else number
    return None if kind in (None, "null_value") else getattr(value, kind)
