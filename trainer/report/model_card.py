"""The card of a trained model: `README.md` with front matter as the Hugging Face hub reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from salon.numbers import duration, plain
from trainer.evaluation.held_out import Evaluation
from trainer.report.pictures import COLOURS, Box, draw_pictures, write
from trainer.report.results import NORMALIZATIONS, Result
from trainer.report.watch import notes, table, written
from trainer.spec.dotted import dotted
from trainer.spec.rewarded_job import RewardedJob

PICTURE = "before_after.png"
PICTURES_SHOWN = 8


def write_model_card(
    folder: Path,
    spec: RewardedJob,
    summary: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    *,
    is_best: bool = False,
) -> None:
    """Write `README.md` and the picture in it into the folder of a saved model.

    Args:
        folder: where the model was just written.
        spec: the resolved job.
        summary: the content of `summary.json`, as of when this was the trained model.
        before: the evaluation of the model as it came.
        after: that of the trained model, on the same prompts and seeds.
        is_best: whether this is the model that `summary["best"]` is about.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 - Markdown, not HTML; prompts go through `_code`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    example = spec.evaluation.prompts[0].prompt
    how_to_load = ""
    if spec.how_to_load is not None:
        template = environment.from_string(spec.how_to_load.read_text(encoding="utf-8"))
        how_to_load = template.render(spec=spec, example=example).rstrip()
    results = Result.all_of(summary)
    best = summary["best"] if is_best else None
    shown = min(PICTURES_SHOWN, len(before.prompts))
    card = environment.get_template("model_card.md.j2").render(
        front_matter=yaml.safe_dump(spec.front_matter(), sort_keys=False, allow_unicode=True),
        spec=spec,
        summary=summary,
        best=best,
        best_value=written(summary, best["metric"], best["value"]) if best else None,
        plain=plain,
        duration=duration(summary["seconds"]),
        results=results,
        notes=notes({**summary, "best": None} if is_best else summary, spec.iterations),
        table=table(summary),
        normalizations=NORMALIZATIONS,
        hyperparameters={
            key: "null" if value is None else value
            for key, value in dotted(
                spec.algorithm.model_dump(mode="json", exclude={"name"})
            ).items()
        },
        picture=PICTURE,
        shown=shown,
        how_to_load=how_to_load,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    _draw_before_after(results, before, after, shown).savefig(folder / PICTURE, format="png")


def _code(text: object) -> str:
    """Inline code of Markdown, fenced by more backticks than the text has in a row."""
    line = " ".join(str(text).split())
    fence = "`"
    while fence in line:
        fence += "`"
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")


def _draw_before_after(
    results: list[Result], before: Evaluation, after: Evaluation, shown: int
) -> Figure:
    figure = Figure(figsize=(12, 4.2 + 0.3 * len(results)), dpi=100, facecolor="white")
    height = (figure.get_size_inches()[1] - 0.2) / 2
    kinds: tuple[Literal["before", "after"], ...] = ("before", "after")
    for row, kind in enumerate(kinds):
        top = 0.2 + row * height
        write(figure, 0.2, top, f"{kind.capitalize()} training", 14, COLOURS[kind], "bold")
        box = Box(0.2, top + 0.32, 11.6, height - 0.4)
        draw_pictures(figure, box, (before, after), kind, results, shown, PICTURES_SHOWN)
    return figure
