"""What a finished run leaves: model, card, summary and report; on the hub, too, if asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from salon.numbers import finite
from trainer.algorithm import Algorithm, Generator
from trainer.evaluation.evaluations import Evaluations
from trainer.evaluation.held_out import Evaluation
from trainer.report import write_progress, write_report
from trainer.report.model_card import write_model_card
from trainer.runtime.hub import by_hand, push
from trainer.runtime.metrics_file import read_metrics
from trainer.runtime.run_folder import RunFolder
from trainer.spec.job_spec import JobSpec
from trainer.tracking.tracker import Tracker

log = structlog.get_logger()


def save_model(
    folder: Path,
    evaluations: Evaluations,
    summary: Mapping[str, Any],
    after: Evaluation,
    *,
    is_best: bool = False,
) -> None:
    """Write the model that was trained into `folder`, with its card; see `write_model_card`."""
    evaluations.generator.save(folder)
    before = evaluations.before
    write_model_card(folder, evaluations.spec, summary, before, after, is_best=is_best)


def write_result(
    spec: JobSpec,
    summary: Mapping[str, Any],
    algorithm: Algorithm,
    evaluations: Evaluations | None,
    folder: RunFolder,
    tracker: Tracker,
) -> None:
    """Write all of it into the run folder, and upload the model if the spec says where to.

    Args:
        spec: the resolved job.
        summary: the content of `summary.json`.
        algorithm: whose model it is.
        evaluations: all that were made; None for an algorithm of which nothing is evaluated.
        folder: the run's.
        tracker: told of what goes on; an upload that fails is a warning, not an error.
    """
    tracker.stage("writing the result")
    metrics = read_metrics(folder)
    if evaluations is None:
        if isinstance(algorithm, Generator):
            with folder.folder("model") as path:
                algorithm.save(path)
        write_progress(folder, spec, summary, metrics)
    else:
        before, after = evaluations.before, evaluations.last
        with folder.folder("model") as path:
            save_model(path, evaluations, summary, after)
        write_report(folder, evaluations.spec, summary, before, after, metrics)
    folder.write_text("summary.json", json.dumps(finite(summary), indent=2) + "\n")
    tracker.result(summary)
    if evaluations is not None and evaluations.spec.push_to_hub is not None:
        _push(evaluations.spec.push_to_hub, folder, tracker)


def _push(repository: str, folder: RunFolder, tracker: Tracker) -> None:
    model = folder.path.absolute() / "model"
    tracker.stage(f"uploading the model to {repository}")
    try:
        address = push(model, repository)
    except Exception as error:  # the training is done: no failure of a network undoes it
        log.exception("upload failed", repository=repository)
        reason = " ".join(str(error).split())
        tracker.warn(
            f"the model is not on the hub: {type(error).__name__}: {reason}; it lies in {model}, "
            f"and this gives it away: {by_hand(model, repository)}"
        )
    else:
        tracker.stage(f"uploaded: {address}")
