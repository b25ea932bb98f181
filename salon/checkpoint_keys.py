"""Whether a checkpoint's weights are those of its network, told by their names and shapes."""

import re
from collections.abc import Collection, Iterable, Sequence

NAMED = 3
"""How many weights of a kind an error names; it counts the others."""

Mismatch = tuple[str, Sequence[int], Sequence[int]]
"""A name, the shape in the checkpoint, and that of the network."""


def fault(
    missing: Collection[str], unexpected: Collection[str], mismatched: Collection[Mismatch]
) -> str:
    """What is wrong, as a predicate of the checkpoint ("it …"); empty if nothing is."""
    if missing:
        return f"lacks {_count(missing)}"
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


def _unnumbered(name: str) -> str:
    return re.sub(r"(?<=\.)[0-9]+(?=\.)", "N", name)


def _count(names: Collection[str]) -> str:
    weights = "weight" if len(names) == 1 else "weights"
    return f"{len(names)} {weights}, such as {_listed(sorted(names)[:NAMED])}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more
