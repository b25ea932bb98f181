"""Pictures with their scores under them, drawn onto a matplotlib figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from trainer.evaluation import Evaluation
from trainer.report.results import Result

COLOURS = {"before": "#6f6a61", "after": "#0b6e63"}
SMALL_PICTURE = 128  # pixels below which enlarging shows pixels rather than a blur
GAP = 0.07  # inches between two pictures
POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Box:
    """A part of a figure, in inches from its upper left corner."""

    left: float
    top: float
    width: float
    height: float

    def fractions(self, figure: Figure) -> tuple[float, float, float, float]:
        """(left, bottom, width, height) as matplotlib wants them."""
        width, height = figure.get_size_inches()
        bottom = height - self.top - self.height
        return self.left / width, bottom / height, self.width / width, self.height / height


def write(
    figure: Figure,
    left: float,
    top: float,
    text: str,
    size: float,
    colour: str,
    weight: str = "normal",
) -> None:
    """Text whose upper left corner is so many inches from the figure's."""
    x, y, *_ = Box(left, top, 0, 0).fractions(figure)
    # Names of rewards and jobs are not formulas: a dollar sign is a dollar sign.
    figure.text(
        x, y, text, size=size, color=colour, weight=weight, va="top", family="DejaVu Sans",
        parse_math=False,
    )  # fmt: skip


def draw_pictures(
    figure: Figure,
    box: Box,
    kind: str,
    evaluation: Evaluation,
    results: Sequence[Result],
    shown: int,
    columns: int,
) -> float:
    """Draw the first pictures of an evaluation into a box, row by row.

    Returns:
        The width that they take, in inches.
    """
    shown = min(shown, len(evaluation.prompts))
    rows = math.ceil(shown / columns)
    size = 12.0 if len(results) == 1 else 9.5
    caption = len(results) * size * 1.25 / POINTS_PER_INCH + 0.12
    height, width = evaluation.images.shape[1:3]
    across = min(box.width / columns - GAP, (box.height / rows - caption) * width / height)
    down = across * height / width
    smooth = "antialiased" if max(height, width) >= SMALL_PICTURE else "nearest"
    for i in range(shown):
        row, column = divmod(i, columns)
        left, top = box.left + column * (across + GAP), box.top + row * (down + caption)
        axes = figure.add_axes(Box(left, top, across, down).fractions(figure))
        axes.imshow(evaluation.images[i], interpolation=smooth, aspect="auto")
        axes.axis("off")
        scores = [result.score(float(evaluation.scores[result.reward][i])) for result in results]
        write(figure, left, top + down + 0.05, "\n".join(scores), size, COLOURS[kind])
    return float(columns * (across + GAP) - GAP)
