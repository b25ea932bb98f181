"""TensorBoard's files in the run folder: every run has them."""

import math
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from trainer.report.pictures import SMALL_PICTURE
from trainer.tracking.boards import Pictures

COLUMNS = 4
CAPTION_WIDTH = 34  # characters a line


class TensorBoard:
    """The folder `tensorboard/`; on resume, what lies beyond `iteration` is not shown any more.

    TensorBoard folds its charts by what stands before the slash of a name. Names are those of
    `metrics.jsonl`; one without a slash is shown under `train/`, pictures under `pictures/`.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=iteration + 1)

    def scalars(self, iteration: int, metrics: dict[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in metrics.items():
            grouped = name if "/" in name else f"train/{name}"
            self._writer.add_scalar(grouped, value, iteration)
        # A resumed run goes on after its checkpoint: what was not written by then never would be.
        self._writer.flush()

    def pictures(self, iteration: int, name: str, pictures: Pictures) -> None:
        """Add a grid of pictures, as one picture: TensorBoard knows no captions."""
        self._writer.add_figure(f"pictures/{name}", draw_grid(pictures), iteration, close=False)

    def close(self, failed: bool) -> None:
        """Send what is left."""
        self._writer.close()


def draw_grid(pictures: Pictures) -> Figure:
    """Rows of four, each picture with its caption below it."""
    count, height, width, _ = pictures.images.shape
    rows = math.ceil(count / COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, (3 * height / width + 0.7) * rows), dpi=100)
    smooth = "antialiased" if max(height, width) >= SMALL_PICTURE else "nearest"
    for i, caption in enumerate(pictures.captions):
        axes = figure.add_subplot(rows, COLUMNS, i + 1)
        axes.imshow(pictures.images[i], interpolation=smooth)
        axes.axis("off")
        text = textwrap.fill(" ".join(caption.split()), CAPTION_WIDTH, max_lines=3)
        axes.text(
            0.5, -0.03, text, size=9, ha="center", va="top", transform=axes.transAxes,
            parse_math=False,
        )  # fmt: skip
    figure.tight_layout()
    return figure
