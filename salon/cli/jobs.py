"""The commands about jobs that there are: jobs, show, logs, cancel, report."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import redis
import typer
import yaml
from rich.console import Console

from salon.cli.records import (
    find,
    jobs_table,
    record_as_json,
    result_table,
    shown_path,
    whole_as_json,
)
from salon.cli.terminal import EXIT_INTERRUPTED, console, print_json, print_table
from salon.errors import InvalidRequest, SalonError, StackUnavailable
from salon.extras import require
from salon.jobs.record import Job, JobState
from salon.jobs.store import JobStore
from salon.own_modules import python
from salon.queue.connection import RedisRefused, connect, connect_now, connect_once
from salon.settings import Settings, load_settings

COMPLETION_SECONDS = 0.5


def _ids(incomplete: str) -> list[str]:
    """For the shell: the ids that begin so; none where no Redis answers at once."""
    try:
        ids = JobStore(connect_once(load_settings().redis_url, COMPLETION_SECONDS)).ids()
    except (SalonError, redis.RedisError, OSError, ValueError, TypeError):
        return []  # words in the middle of a command line that is being typed help nobody
    return [job for job in ids if job.startswith(incomplete)]


JobName = Annotated[
    str,
    typer.Argument(
        help="A job's id, as `salon jobs` lists it, or how only it begins or ends.",
        autocompletion=_ids,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, as docs/commands.md has it.")
]


def open_store(settings: Settings) -> JobStore:
    """The jobs in the stack's Redis; raises StackUnavailable where nothing answers."""
    return JobStore(connect_now(settings.redis_url))


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    jobs = _open_history(load_settings()).newest(limit)
    if as_json:
        print_json([record_as_json(job) for job in jobs])
    else:
        print_table(jobs_table(jobs))


def _open_history(settings: Settings) -> JobStore:
    """As `open_store`; where no stack runs the error says what else there is of past jobs."""
    try:
        return open_store(settings)
    except StackUnavailable as error:
        if isinstance(error, RedisRefused) or not any(settings.runs_dir.glob("*/spec.yaml")):
            raise
        raise StackUnavailable(
            f"{error}; the run folders of past jobs are in {settings.runs_dir}, and "
            "`salon report FOLDER...` reads them"
        ) from None


def show(
    job: JobName,
    spec: Annotated[bool, typer.Option("--spec", help="Print its whole spec instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where a job stands, what came of it and where that lies."""
    store = _open_history(load_settings())
    record = find(store, job)
    if as_json:
        print_json(whole_as_json(store, record))
    elif spec:
        text = yaml.safe_dump(dict(record.spec), sort_keys=False, allow_unicode=True)
        console.print(text, soft_wrap=True, end="")
    else:
        print_table(jobs_table([record]))
        print_outcome(store, record, console)
        console.print(f"spec    salon show {record.id} --spec", soft_wrap=True)


def print_outcome(store: JobStore, record: Job, screen: Console) -> None:
    """Before, after and effect size where the job succeeded; and where what it left lies."""
    if record.state is JobState.SUCCEEDED and (result := store.latest(record.id, "result")):
        try:
            table = result_table(result.data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"entry {result.id} of the job's history cannot be shown: {error!r}"
            screen.print(text, style="yellow", soft_wrap=True)
        else:
            print_table(table, screen)
    if not record.folder:  # nothing has run it yet
        return
    folder = shown_path(record.folder)
    if record.state is JobState.SUCCEEDED:
        screen.print(f"report  {folder / 'report.html'}", soft_wrap=True)
        screen.print(f"model   {folder / 'model'}", soft_wrap=True)
    else:
        screen.print(f"folder  {folder}", soft_wrap=True)


def cancel(job: JobName) -> None:
    """Cancel a job; a running one stops at its next step."""
    store = open_store(load_settings())
    record = find(store, job)
    answer = store.cancel(record.id)
    if answer == "requested":
        said = f"{record.id} is asked to stop, and does at its next step"
    elif record.state.final:
        said = f"{record.id} is {answer} already: there is nothing to cancel"
    else:
        said = f"{record.id} is {answer}"
    console.print(said, soft_wrap=True)


def show_logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """Print a job's log."""
    settings = load_settings()
    store = open_store(settings)
    name = find(store, job).id
    if follow:  # patient: the job survives a restart of Redis
        store = JobStore(connect(settings.redis_url))
    try:
        for line in store.follow_log(name) if follow else store.logs(name):
            console.print(line, soft_wrap=True)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def report(
    jobs: Annotated[
        list[str],
        typer.Argument(
            help="Jobs that succeeded, of one kind; or their run folders.", autocompletion=_ids
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one report over several jobs, such as those of `submit --seeds`."""
    check_report_file(out)
    compare(_run_folders(jobs), out, console)


def _run_folders(jobs: Iterable[str]) -> list[str]:
    """Of jobs, or the folders themselves: that of `salon run` is asked for with no stack up."""
    folders = {job: job for job in jobs}
    if ids := [job for job in folders if not Path(job).is_dir()]:
        store = open_store(load_settings())
        folders |= {job: _run_folder(find(store, job)) for job in ids}
    return list(folders.values())


def _run_folder(record: Job) -> str:
    if record.state is not JobState.SUCCEEDED:
        why = "only a job that succeeded has a report" if record.state.final else "no report yet"
        raise InvalidRequest(f"{record.id} is {record.state.value}: {why}")
    return record.folder


def check_report_file(out: Path) -> None:
    """Find what would keep a report from being written, before the jobs run.

    Raises:
        SalonError: the trainer is not installed, or there is no folder for the file.
    """
    require("a report", "trainer")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InvalidRequest(f"--out {str(out)!r} is no file in a folder that exists")


def compare(folders: list[str], out: Path, screen: Console) -> None:
    """Let the trainer write one report over these run folders.

    Raises:
        SalonError: it cannot, and why.
    """
    command = python("trainer", "compare", "--out", str(out), "--", *folders)
    with screen.status("writing the report"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise SalonError(f"no report over these jobs: {said[-1]}")
    screen.print(f"report  {shown_path(str(out.absolute()))}", soft_wrap=True)
