"""The `salon` command."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import redis
import typer
import yaml
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from salon import stack
from salon.broker import create_app, send_launch, served_rewards
from salon.connection import connect, connect_now
from salon.ctrl_c import never_lose_ctrl_c
from salon.errors import SalonError
from salon.jobs import Job, JobState, JobStore
from salon.local_services import DEFAULT_REWARDS, refuse_misspelt
from salon.score_command import score
from salon.settings import Settings, load_settings
from salon.tokens import add_token
from salon.watch import jobs_table, watch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score images with reward models; fine-tune image generators against them.",
)
console = Console(highlight=False)

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130

JobName = Annotated[str, typer.Argument(help="A job's id, as `salon jobs` lists it.")]
SpecPath = Annotated[Path, typer.Argument(help="A YAML job spec, e.g. jobs/*.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. seed=1.")
]


@app.command()
def up(
    rewards: Annotated[
        str, typer.Option(help="Rewards to serve, on tiny models: names with commas, or all.")
    ] = ",".join(DEFAULT_REWARDS),
) -> None:
    """Start the local stack: Redis, reward services, a scoring and a training worker."""
    settings = load_settings()
    names = [name.strip() for name in rewards.split(",")]
    with console.status("starting the stack"):
        state = stack.up(settings, names)
    table = Table("process", "pid", "log", box=None)
    for child in state["children"]:
        log_file = settings.state_dir / "logs" / f"{child['name']}.log"
        table.add_row(child["name"], str(child["pid"]), str(log_file))
    console.print(table)
    table = Table("reward", "served at", box=None)
    for reward, target in state["rewards"].items():
        table.add_row(reward, target)
    console.print(table)
    console.print(f"redis at {settings.redis_url}")


@app.command()
def down() -> None:
    """Stop the local stack; queued and running jobs go on after the next `salon up`."""
    stopped = stack.down(load_settings())
    console.print("stopped" if stopped else "no stack was running")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    reward: Annotated[str, typer.Argument(help="A reward module, e.g. jpeg.")],
) -> None:
    """Serve one reward in the foreground; options are those of `python -m services`."""
    os.execv(sys.executable, [sys.executable, "-m", "services", reward, *context.args])


app.command()(score)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; one word, for the logs.")],
    file: Annotated[Path, typer.Argument(help="The services' --tokens file, made if need be.")],
) -> None:
    """Make a bearer token: its hash is added to FILE, the token itself is printed, once."""
    typer.echo(add_token(name, file))


@app.command()
def submit(
    spec: SpecPath,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
) -> None:
    """Check a job spec, store the job and queue it."""
    settings = load_settings()
    job = _submit(settings, spec, overrides or [])
    if follow:
        _watch(settings, job)


@app.command()
def run(spec: SpecPath, overrides: Overrides = None) -> None:
    """Start the stack, run one job to its end, stop the stack; Ctrl-C cancels the job."""
    settings = load_settings()
    _, resolved = _check(settings, spec, overrides or [], here=True)
    # A closed terminal and a polite kill end this command as Ctrl-C does: with the stack stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with console.status("starting the stack"):
            stack.up(settings, _rewards_of(resolved))
        _run(settings, spec, overrides or [])
    except KeyboardInterrupt:
        console.print("stopped by the user: the job is cancelled, the stack is down")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _run(settings: Settings, spec: Path, overrides: list[str]) -> None:
    """Run one job on a stack that is up, and leave it down."""
    job = ""
    try:
        job = _submit(settings, spec, overrides)
        _follow(settings, job)
    except KeyboardInterrupt:
        if job:  # or it would go on with the next `salon up`
            _store(settings).cancel(job)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with console.status("stopping the stack"):
            stack.down(settings)


@app.command("jobs")
def list_jobs() -> None:
    """List jobs, newest first."""
    console.print(jobs_table(_store(load_settings()).newest()))


@app.command()
def show(job: JobName) -> None:
    """Show a job's record and its resolved spec."""
    record = _store(load_settings()).get(job)
    console.print(jobs_table([record]))
    console.print(yaml.safe_dump(dict(record.spec), sort_keys=False), markup=False)


@app.command("watch")
def watch_job(job: JobName) -> None:
    """Follow a job until it ends."""
    _watch(load_settings(), job)


@app.command()
def cancel(job: JobName) -> None:
    """Cancel a job; a running one stops at its next step."""
    answer = _store(load_settings()).cancel(job)
    console.print(
        "asked to stop" if answer == "requested" else f"{job} is {answer}", soft_wrap=True
    )


@app.command("logs")
def show_logs(job: JobName) -> None:
    """Print a job's log."""
    for line in _store(load_settings()).logs(job):
        console.print(line, markup=False, soft_wrap=True)


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _rewards_of(resolved: dict[str, Any]) -> list[str]:
    return [*(reward["name"] for reward in resolved["rewards"]), *resolved["eval_rewards"]]


def _store(settings: Settings) -> JobStore:
    return JobStore(connect_now(settings.redis_url))


def _check(
    settings: Settings, path: Path, overrides: list[str], *, here: bool = False
) -> tuple[str, dict[str, Any]]:
    # The one thing above the ground floor this command knows, and only to check a spec early.
    from trainer.spec import check_inputs  # noqa: PLC0415
    from trainer.spec_file import load_spec  # noqa: PLC0415

    spec = load_spec(path, overrides)
    check_inputs(spec, settings, here=here)
    return spec.name, spec.model_dump(mode="json")


def _submit(settings: Settings, path: Path, overrides: list[str]) -> str:
    name, resolved = _check(settings, path, overrides)
    store, celery = _store(settings), create_app(settings)
    served = served_rewards(celery)
    refuse_misspelt(_rewards_of(resolved), settings.reward_targets.keys() | served)
    for reward in sorted(set(_rewards_of(resolved)) - served):
        known = ", ".join(sorted(served)) or "none"
        console.print(
            f"no worker scores {reward} now (served: {known}); the job will wait for one",
            style="yellow",
        )
    job = store.submit(name, resolved)
    send_launch(celery, job.id)
    shown = _shorten(resolved) | {"evaluation": _shorten(resolved["evaluation"])}
    console.print(yaml.safe_dump(shown, sort_keys=False), style="dim", markup=False)
    console.print(f"submitted [bold]{job.id}[/bold]")
    return job.id


def _shorten(section: dict[str, Any]) -> dict[str, Any]:
    prompts = section["prompts"]
    return section | {"prompts": f"{len(prompts)} prompts, e.g. {prompts[0]}"}


def _watch(settings: Settings, job: str) -> None:
    """Follow the job until it ends or the user looks away."""
    try:
        _follow(settings, job)
    except KeyboardInterrupt:
        console.print(f"{job} goes on: `salon watch {job}` follows it again", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _follow(settings: Settings, job: str) -> None:
    """Follow the job, then say where its results lie; a job that failed is this command's error."""
    _store(settings).get(job)
    # Patient from here on: the job survives a restart of Redis, and so should who watches it.
    record: Job = watch(JobStore(connect(settings.redis_url)), job, console)
    if record.state is not JobState.SUCCEEDED:
        raise SalonError(f"{job} {record.state.value}: {record.reason}")
    folder = Path(record.folder)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    console.print(f"report  {folder / 'report.html'}\nmodel   {folder / 'model'}", soft_wrap=True)


def main() -> None:
    """Run the command; an error the user can mend is one line, not a traceback."""
    never_lose_ctrl_c()
    try:
        app()
    except (SalonError, redis.RedisError, OperationalError, OSError) as error:
        line = Text("error: ", style="red").append(str(error), style="default")
        Console(stderr=True).print(line, soft_wrap=True)
        sys.exit(EXIT_ERROR)
