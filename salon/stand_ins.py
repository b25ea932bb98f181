"""Models that stand in for large ones: they say so in their card, and nothing is guessed.

`models/tiny-*` have the classes of real models and know handwritten digits alone. Their scores are
for trying things out; a real generator trained on them would learn nothing, and nobody would see.
"""

from collections.abc import Iterable
from pathlib import Path

from salon.errors import InvalidRequest

CARD = "README.md"
MARK = "stand_in: true"
"""In the front matter of a card, a line of its own."""
_CARD_CHARACTERS = 64 * 1024


def is_stand_in(source: str) -> bool:
    """Whether the model at `source` says so of itself.

    Args:
        source: a folder with the card in it, or a file with the card beside it; for anything else,
            such as a hub id, the answer is no.
    """
    path = Path(source)
    try:
        if not path.exists():
            return False
        card = (path if path.is_dir() else path.parent) / CARD
        with card.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_CARD_CHARACTERS).splitlines()
    except (OSError, ValueError):  # no card, or no path at all
        return False
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return False
    return MARK in lines[1 : lines.index("---", 1)]


def refusal(rewards: Iterable[str], model: str) -> InvalidRequest:
    """The error of a job that trains `model`, which is no stand-in, by `rewards`, which are."""
    return InvalidRequest(
        f"{', '.join(rewards)}: served by a small stand-in, whose scores say nothing of what "
        f"{model} draws; serve the real reward and name its address in SALON_REWARD_TARGETS, or "
        "set allow_stand_ins: true for a trial"
    )
