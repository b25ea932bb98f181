"""The prompts of the tiny generator: "a red three on a blue background", all 560 of them.

`python -m tiny.prompts` writes the two prompt lists that training jobs read.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 44, 48),
    "yellow": (240, 200, 48),
    "green": (44, 148, 72),
    "cyan": (64, 192, 212),
    "blue": (40, 76, 190),
    "purple": (136, 60, 164),
    "white": (242, 238, 228),
    "black": (30, 30, 34),
}
"""Named colours, sRGB in 0..255."""

DARK = ("black", "blue", "purple")
LIGHT = ("white", "yellow", "cyan")

_NAMES = tuple(COLOURS)
LISTS = Path(__file__).parents[1] / "jobs" / "prompts"
"""Where the lists lie that training jobs read."""


@dataclass(frozen=True)
class Scene:
    """What one image shows: a digit (0..9) in one colour on paper of another."""

    ink: str
    digit: int
    paper: str

    @property
    def prompt(self) -> str:
        """The scene in words."""
        return f"a {self.ink} {DIGITS[self.digit]} on a {self.paper} background"

    @property
    def dark_on_light(self) -> bool:
        """Whether the ink is clearly darker than the paper.

        Over all pairs of colours, ink is as often the lighter as the darker, and what a digit's
        shape adds to an image is near zero on average. Where contrast has one sign, shapes are
        learned sooner, and a training may well begin there.
        """
        return self.ink in DARK and self.paper in LIGHT

    @property
    def held_out(self) -> bool:
        """Whether fine-tuning must never see this prompt.

        With colours numbered in the order of `COLOURS`, a scene is held out when
        (ink + 2 paper + digit) is a multiple of 8: seven scenes of each digit, 70 of the 560,
        so that every digit, ink and paper stays in both lists and only combinations are new.
        """
        return (_NAMES.index(self.ink) + 2 * _NAMES.index(self.paper) + self.digit) % 8 == 0


SCENES: tuple[Scene, ...] = tuple(
    Scene(ink, digit, paper)
    for digit, ink, paper in product(range(10), _NAMES, _NAMES)
    if ink != paper
)
"""All 10 digits x 8 inks x 7 papers of another colour."""


def main() -> None:
    """Write jobs/prompts/digits-train.txt and digits-heldout.txt, one prompt a line."""
    LISTS.mkdir(parents=True, exist_ok=True)
    for name, held_out in (("digits-train.txt", False), ("digits-heldout.txt", True)):
        prompts = [scene.prompt for scene in SCENES if scene.held_out is held_out]
        (LISTS / name).write_text("\n".join(prompts) + "\n")


if __name__ == "__main__":
    main()
