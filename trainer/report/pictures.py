"""Pictures with their scores under them, drawn onto a matplotlib figure."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure

from trainer.evaluation.held_out import Evaluation
from trainer.report.results import MARKS, Result

COLOURS = {
    "before": "#6f6a61",
    "after": "#0b5fa5",
    "better": "#00715a",
    "worse": "#b03a06",
    "same": "#1c1b19",
}
"""Blue, bluish green and vermilion, which the colour-blind tell apart (Okabe & Ito 2008), as dark
as text must be to be read on white."""
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


def spread_over(prompts: Sequence[str], count: int) -> list[int]:
    """Which `count` of the samples of `prompts` [N] to show, ascending: of all prompts alike.

    An evaluation takes its prompts in turn, so that its first samples are of the first prompts
    alone. Where there are more prompts than pictures, they are taken in equal steps.
    """
    chosen: list[int] = []
    rounds = defaultdict[int, list[int]](list)  # the first sample of each prompt, the second, …
    seen: Counter[str] = Counter()
    for i, prompt in enumerate(prompts):
        rounds[seen[prompt]].append(i)
        seen[prompt] += 1
    for candidates in rounds.values():
        wanted = min(count - len(chosen), len(candidates))
        chosen += [candidates[k * len(candidates) // wanted] for k in range(wanted)]
    return sorted(chosen)


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
    pair: tuple[Evaluation, Evaluation],
    kind: Literal["before", "after"],
    results: Sequence[Result],
    shown: int,
    columns: int,
) -> float:
    """Draw pictures of an evaluation into a box, row by row, their scores under them.

    Args:
        figure: to draw on.
        box: where.
        pair: the evaluations before and after.
        kind: which of the two; scores after say whether they are better than those before.
        results: of the rewards whose scores are written.
        shown: how many pictures at most.
        columns: in a row.

    Returns:
        The width that they take, in inches.
    """
    before, after = pair
    evaluation = before if kind == "before" else after
    samples = spread_over(evaluation.prompts, shown)
    rows = math.ceil(len(samples) / columns)
    size = 12.0 if len(results) == 1 else 9.5
    line = size * 1.25 / POINTS_PER_INCH
    caption = len(results) * line + 0.12
    height, width = evaluation.images.shape[1:3]
    across = min(box.width / columns - GAP, (box.height / rows - caption) * width / height)
    down = across * height / width
    smooth = "antialiased" if max(height, width) >= SMALL_PICTURE else "nearest"
    for place, i in enumerate(samples):
        row, column = divmod(place, columns)
        left, top = box.left + column * (across + GAP), box.top + row * (down + caption)
        axes = figure.add_axes(Box(left, top, across, down).fractions(figure))
        axes.imshow(evaluation.images[i], interpolation=smooth, aspect="auto")
        axes.axis("off")
        for number, result in enumerate(results):
            scores = [float(each.scores[result.reward][i]) for each in pair]
            verdict = result.verdict(*scores)
            text, colour = result.score(scores[0]), COLOURS["before"]
            if kind == "after":
                text, colour = f"{result.score(scores[1])} {MARKS[verdict]}", COLOURS[verdict]
            write(figure, left, top + down + 0.05 + number * line, text, size, colour)
    return float(columns * (across + GAP) - GAP)
