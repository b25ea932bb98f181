"""Whether a checkpoint's weights are those of its network, by their names, shapes and numbers.

No torch here: tensors are asked by their own methods.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

NAMED = 3
"""How many weights of a kind an error names; it counts the others."""

Mismatch = tuple[str, Sequence[int], Sequence[int]]
"""A name, the shape in the checkpoint, and that of the network."""

_FLOATS = {"float64", "float32", "float16", "bfloat16"}  # as torch calls them,
_FLOATS |= {"F64", "F32", "F16", "BF16"}  # and safetensors


def fault(
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[Mismatch],
    odd: Mapping[str, str] | None = None,
) -> str:
    """What is wrong, as a predicate of the checkpoint ("it …"); empty if nothing is.

    Args:
        missing: names that the network has and the checkpoint has not.
        unexpected: the other way round.
        mismatched: those of other shapes.
        odd: what `odd_types` returned.
    """
    if missing:
        return f"lacks {_count(missing)}"
    if odd:
        words = [f"{name} ({kind.lower()})" for name, kind in sorted(odd.items())]
        return (
            f"has {_count(words)}, which is no type that Salon computes with (float16, bfloat16, "
            "float32, float64): take the model before it was quantised"
        )
    if mismatched:
        shapes = sorted(mismatched, key=lambda mismatch: mismatch[0])
        words = [f"{name} {tuple(found)} for {tuple(own)}" for name, found, own in shapes]
        return (
            "does not fit its configuration, by which one of the two is another model's: of other "
            f"shapes are {_listed(words)}"
        )
    if unexpected:
        return f"has {_count(unexpected)} for which its configuration has no place"
    return ""


def further_layers(unexpected: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Those of `unexpected` that are called as one of `expected`, but for the number of a layer.

    A network built with fewer layers than were trained computes something else. Other unexpected
    names are harmless where a checkpoint may hold more than the part that is read: the position
    numbers of old CLIP checkpoints, or the vision half beside a text encoder.
    """
    known = {_unnumbered(name) for name in expected}
    return sorted(name for name in unexpected if _unnumbered(name) in known)


def odd_types(stored: Mapping[str, str], own: Iterable[str]) -> dict[str, str]:
    """Those of `stored`, types by name, that would be turned into other numbers without a word.

    Whatever is no floating-point number of 16 bits or more, but for what no weight of the network
    is called like: position numbers and counters, which are whole.

    Args:
        stored: `F32` or `float32` and their like, by the checkpoint's names.
        own: the network's floating-point weights.
    """
    ends = {_end(name) for name in own}
    return {
        name: kind for name, kind in stored.items() if kind not in _FLOATS and _end(name) in ends
    }


def damage(weights: Iterable[tuple[str, Any]], files: Mapping[str, Collection[str]]) -> str:
    """What is wrong with the numbers, as `fault` says it: some are NaN or infinite.

    Args:
        weights: name and tensor of each, as the network has them.
        files: where they are from, and the names in each, which a library may know by a longer or
            a shorter name.
    """
    found = {name: weight for name, weight in weights if not _is_finite(weight)}
    if not found:
        return ""
    ends = [f".{name}" for name in found]
    holding = [
        file
        for file, names in files.items()
        if any(f".{own}".endswith(end) or end.endswith(f".{own}") for own in names for end in ends)
    ]
    kind = str(next(iter(found.values())).dtype).removeprefix("torch.")
    return f"has NaN or infinity, as {kind}, in {_count(found)} of {_listed(holding or [*files])}"


def _is_finite(weight: Any) -> bool:
    """Of a tensor of any type; by its extremes, which are NaN if any of it is.

    Of 4 GB in fp32 they took 0.2 s on two cores and `isfinite().all()` 6 s; to load them, 1.7 s.
    """
    if not weight.is_floating_point() or not weight.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in weight.aminmax())


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _unnumbered(name: str) -> str:
    return re.sub(r"(?<=\.)[0-9]+(?=\.)", "N", name)


def _count(names: Collection[str]) -> str:
    weights = "weight" if len(names) == 1 else "weights"
    return f"{len(names)} {weights}, such as {_listed(sorted(names)[:NAMED])}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more
