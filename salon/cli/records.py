"""Jobs as the commands show them: a table for people, JSON for programs."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from salon.errors import InvalidRequest
from salon.jobs.record import Job, JobNotFound, JobState
from salon.jobs.store import JobStore
from salon.numbers import decimals_for, duration, effect, mean_and_std

STYLES = {
    "succeeded": "bold green",
    "failed": "bold red",
    "cancelled": "yellow",
    "running": "bold cyan",
    "waiting": "bold magenta",
    "queued": "dim",
}


def find(store: JobStore, text: str) -> Job:
    """The job of that id, or the only one whose id begins or ends so.

    Raises:
        JobNotFound: there is none.
        InvalidRequest: there are several; the message names them.
    """
    try:
        return store.get(text)
    except JobNotFound:
        found = [i for i in store.ids() if text and (i.startswith(text) or i.endswith(text))]
        if not found:
            raise
    if len(found) > 1:
        more = ", …" if len(found) > 5 else ""
        raise InvalidRequest(f"{text!r} may be any of {', '.join(found[:5])}{more}: write more")
    return store.get(found[0])


def jobs_table(jobs: Sequence[Job]) -> Table:
    """The jobs in their order, one a row; with why they ended so, where one of them says."""
    table = Table(box=None)
    for name in ("job", "state", "attempts", "submitted", "took"):
        table.add_column(name, no_wrap=True)
    reasons = [" ".join(job.reason.split()) for job in jobs]
    if any(reasons):
        table.add_column("reason", overflow="fold")
    for job, reason in zip(jobs, reasons, strict=True):
        end = job.finished or time.time()
        took = duration(end - job.started) if job.started else ""
        submitted = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.submitted))
        state = Text(job.state.value, style=STYLES[job.state.value])
        row = (job.id, state, str(job.attempts), submitted, took)
        table.add_row(*row, *([Text(reason)] if any(reasons) else []))
    return table


def record_as_json(job: Job) -> dict[str, Any]:
    """The record without its spec; times are seconds since the epoch, null where not yet."""
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "reason": job.reason,
        "attempts": job.attempts,
        "owner": job.owner or None,
        "folder": job.folder or None,
        "question": job.question if job.state is JobState.WAITING else None,
        "cancel_requested": job.cancel_requested,
        "submitted": job.submitted,
        "started": job.started or None,
        "finished": job.finished or None,
    }


def whole_as_json(store: JobStore, job: Job) -> dict[str, Any]:
    """The record, with what came of the job (null where it has not succeeded) and its spec."""
    # One that was resumed has an older one.
    succeeded = job.state is JobState.SUCCEEDED
    event = store.latest(job.id, "result") if succeeded else None
    return {**record_as_json(job), "result": event and dict(event.data), "spec": dict(job.spec)}


def result_table(result: Mapping[str, Any]) -> Table:
    """Before, after and effect size of each reward, as the report has them."""
    table = Table(box=None)
    for name in ("reward", "before", "after", "effect size [95 % interval]"):
        table.add_column(name, no_wrap=True)
    for reward, found in {**result["rewards"], **result["eval_rewards"]}.items():
        before, after = found["before"], found["after"]
        digits = decimals_for(before["std"])
        table.add_row(
            reward,
            *(mean_and_std(part["mean"], part["std"], digits) for part in (before, after)),
            effect(found["effect_size"], found["ci95"], found.get("undefined")),
        )
    return table


def shown_path(folder: str) -> Path:
    """A run folder as seen from here, if it lies below the working directory."""
    path = Path(folder)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
