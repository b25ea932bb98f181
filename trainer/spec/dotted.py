"""Nested sections of a spec as one level of dotted keys, as a job's overrides write them."""

from collections.abc import Mapping
from typing import Any


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """E.g. {"rewards.0.weight": 2}: members of a list of sections go by their place in it.

    But for prompts: whatever their rows carry, they are one value.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        listed = isinstance(value, list) and value and key != "prompts"
        sections = listed and isinstance(value[0], Mapping)
        inner = dict(zip(map(str, range(len(value))), value, strict=True)) if sections else value
        if isinstance(inner, Mapping):
            flat |= dotted(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
