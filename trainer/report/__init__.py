"""The report of a finished run: `report.html`, one page without a request, and `report.png`."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.held_out import Evaluation
from trainer.report.page import render_page, render_progress
from trainer.report.slide import draw_slide
from trainer.runtime.run_folder import RunFolder
from trainer.spec.job_spec import JobSpec
from trainer.spec.rewarded_job import RewardedJob

__all__ = ["write_progress", "write_report"]


def write_report(
    folder: RunFolder,
    spec: RewardedJob,
    summary: Mapping[str, Any],
    before: Evaluation,
    after: Evaluation,
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Write both files, each in one step.

    Args:
        folder: where to.
        spec: the resolved job.
        summary: the content of `summary.json`.
        before: the evaluation of the model as it came.
        after: that of the trained model, on the same prompts and seeds in the same order.
        metrics: one entry an iteration; keys that are absent leave their chart out.
    """
    folder.write_text("report.html", render_page(spec, summary, before, after, metrics))
    figure = draw_slide(summary, before, after, metrics)
    with folder.file("report.png") as path:
        figure.savefig(path, format="png")


def write_progress(
    folder: RunFolder,
    spec: JobSpec,
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page of a run that evaluated nothing; arguments as above."""
    folder.write_text("report.html", render_progress(spec, summary, metrics))
