"""The commands about jobs that there are: jobs, show, logs, cancel, report."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from salon.cli.records import find, jobs_table, record_as_json, shown_path, whole_as_json
from salon.cli.terminal import EXIT_INTERRUPTED, console, print_json, print_table
from salon.connection import connect, connect_now
from salon.errors import InvalidRequest, SalonError
from salon.extras import require
from salon.jobs import Job, JobState, JobStore
from salon.own_modules import python
from salon.settings import Settings, load_settings

JobName = Annotated[
    str, typer.Argument(help="A job's id, as `salon jobs` lists it, or how only it begins or ends.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document; see docs.")]


def open_store(settings: Settings) -> JobStore:
    """The jobs in the stack's Redis; raises StackUnavailable where nothing answers."""
    return JobStore(connect_now(settings.redis_url))


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    jobs = open_store(load_settings()).newest(limit)
    if as_json:
        print_json([record_as_json(job) for job in jobs])
    else:
        print_table(jobs_table(jobs))


def show(job: JobName, as_json: AsJson = False) -> None:
    """Show a job's record and its resolved spec."""
    store = open_store(load_settings())
    record = find(store, job)
    if as_json:
        print_json(whole_as_json(store, record))
        return
    print_table(jobs_table([record]))
    spec = yaml.safe_dump(dict(record.spec), sort_keys=False, allow_unicode=True)
    console.print(spec, soft_wrap=True)


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
        list[str], typer.Argument(help="Jobs that succeeded, of one kind; or their run folders.")
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
        raise InvalidRequest(f"{record.id} is {record.state.value}: it has no report yet")
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
