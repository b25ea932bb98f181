"""The commands that submit jobs and follow them: submit, run, watch."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import redis
import typer
import yaml
from rich.console import Console
from rich.text import Text

from salon.cli.jobs import (
    AsJson,
    JobName,
    check_report_file,
    compare,
    open_store,
    print_outcome,
)
from salon.cli.queue import Queue
from salon.cli.records import find, whole_as_json
from salon.cli.score import known_targets
from salon.cli.specs import CheckedSpec, check, check_stand_ins, parse_seeds
from salon.cli.stack import stop
from salon.cli.terminal import (
    EXIT_INTERRUPTED,
    console,
    hang_up,
    notices,
    print_json,
)
from salon.cli.watch import watch
from salon.errors import InvalidRequest, SalonError
from salon.jobs.bound import bound_key
from salon.jobs.record import Job, JobState
from salon.jobs.store import JobStore
from salon.queue.broker import create_app, send_launch, served_rewards
from salon.queue.connection import connect
from salon.settings import Settings, load_settings
from salon.stack import lifecycle
from salon.stack.local_services import refuse_misspelt

SpecPath = Annotated[Path, typer.Argument(help="A YAML job spec, e.g. jobs/*.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. seed=1.")
]


def _refuse_seed(value: str) -> None:
    if value:
        raise typer.BadParameter(f"give it as an override, seed={value}, or several as --seeds")


class JobEnded(SalonError):
    """A job that was followed to its end did not succeed."""


def submit(
    spec: SpecPath,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="One job for each seed of e.g. 0-4 or 0,3,7.")] = "",
    follow: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="With --seeds and --watch: the report over all, else report.html."),
    ] = None,
    as_json: AsJson = False,
    _: Annotated[str, typer.Option("--seed", hidden=True, callback=_refuse_seed)] = "",
) -> None:
    """Check a job spec, store the job and queue it; with --seeds, several."""
    settings = load_settings()
    checked = _check_all(settings, spec, overrides or [], seeds)
    if out is not None and not (seeds and follow):
        raise InvalidRequest("--out is where --seeds with --watch writes its report: give both")
    out = out or Path("report.html")
    if seeds and follow:
        check_report_file(out)
    screen = notices if as_json else console
    jobs: list[str] = []
    try:
        unserved = _announce(settings, checked[0], screen)
        for each in checked:
            jobs.append(_submit(settings, each).id)
            _print_submitted(jobs[-1], screen)
        _print_unserved(unserved, screen)
        if follow and seeds:
            _watch_all(settings, jobs, out, screen)
        elif follow:
            _watch(settings, jobs[0], screen)
    except BaseException:
        with suppress(SalonError, redis.RedisError):  # of the two errors, the first is the cause
            if as_json and jobs:
                _print_records(settings, jobs, as_list=bool(seeds))
        raise
    if as_json:
        _print_records(settings, jobs, as_list=bool(seeds))


def run(spec: SpecPath, overrides: Overrides = None) -> None:
    """Start the stack, run one job to its end, stop the stack; Ctrl-C cancels the job.

    Whatever ends this command early, the job is cancelled and the stack stopped.
    """
    settings = load_settings()
    checked = check(settings, spec, overrides or [], here=True)
    # A closed terminal and a polite kill end this command as Ctrl-C does: with the stack stopped.
    # What was ignored from the start, as by nohup, stays ignored.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        _run(settings, checked)
    except KeyboardInterrupt:
        console.print("stopped by the user: the job is cancelled, the stack is down")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except SystemExit:
        notices.print("nobody reads on: the job is cancelled, the stack is down")
        raise


def _run(settings: Settings, checked: CheckedSpec) -> None:
    """Run one job on a stack of its own.

    The stack ends with this process and settles its jobs then, even where nothing here can any
    more; `down` only asks it to do so now, and waits.
    """
    started = False
    try:
        with console.status("starting the stack"):
            lifecycle.up(settings, checked.rewards, owner=os.getpid())
        started = True
        settings = load_settings()  # read anew: now the stack's Redis has a password
        unserved = _announce(settings, checked, console)
        job = _submit(settings, checked, bound_key(settings)).id
        _print_submitted(job, console)
        _print_unserved(unserved, console)
        _follow(settings, job, console)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if started:
            stop(settings)


def watch_job(job: JobName) -> None:
    """Follow a job until it ends."""
    settings = load_settings()
    _watch(settings, find(open_store(settings), job).id, console)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    if number == signal.SIGHUP:
        hang_up()
    raise KeyboardInterrupt


def _check_all(
    settings: Settings, path: Path, overrides: Sequence[str], seeds: str
) -> list[CheckedSpec]:
    """The spec as it is, or with each of the seeds."""
    if not seeds:
        return [check(settings, path, overrides)]
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise InvalidRequest("seed=… and --seeds both say which seed it is: give one of them")
    return [check(settings, path, [*overrides, f"seed={seed}"]) for seed in parse_seeds(seeds)]


def _announce(settings: Settings, checked: CheckedSpec, screen: Console) -> dict[str, str]:
    """Say what is submitted; returns what to say of each of its rewards that nobody scores."""
    open_store(settings)
    model = checked.resolved.get("model")
    if model is not None and not checked.resolved["allow_stand_ins"]:
        check_stand_ins(model, checked.rewards, known_targets(settings), settings.security)
    served = served_rewards(create_app(settings))
    refuse_misspelt(checked.rewards, settings.reward_targets.keys() | served)
    if model is not None and not (Path(model).is_absolute() or Path(model).is_dir()):
        screen.print(
            f"model {model} is no folder here: it is taken for an id of the Hugging Face hub",
            style="yellow",
            soft_wrap=True,
        )
    outline = yaml.safe_dump(checked.outline(), sort_keys=False, allow_unicode=True)
    screen.print(outline.rstrip(), style="dim", soft_wrap=True)
    screen.print("# the rest has its defaults", style="dim")
    known = ", ".join(sorted(served)) or "none"
    return {
        reward: f"no worker scores {reward} now (served: {known}); the job will wait for one, e.g."
        for reward in sorted(set(checked.rewards) - served)
    }


def _print_unserved(unserved: Mapping[str, str], screen: Console) -> None:
    """The last that is said, so that it is seen: each with the command that would serve it."""
    for reward, words in unserved.items():
        targets = f"""'{{"{reward}": "HOST:PORT"}}'"""
        command = f"SALON_REWARD_TARGETS={targets} python -P -m workers -Q score.{reward}"
        screen.print(Text(f"{words} {command}", style="yellow"), soft_wrap=True)


def _print_submitted(job: str, screen: Console) -> None:
    screen.print(Text("submitted ").append(job, style="bold"), soft_wrap=True)


def _submit(settings: Settings, checked: CheckedSpec, bound_to: str = "") -> Job:
    """Store and queue a job, or neither.

    Raises:
        SalonError: Redis answers no more, so that it is not known which; it names the job.
    """
    store = open_store(settings)
    job = store.submit(checked.name, checked.resolved, bound_to)
    try:
        send_launch(create_app(settings), job.id)
    except BaseException as error:
        store.withdraw(job.id, error)
        raise
    return job


def _print_records(settings: Settings, jobs: Sequence[str], *, as_list: bool) -> None:
    store = open_store(settings)
    records = [whole_as_json(store, store.get(job)) for job in jobs]
    print_json(records if as_list else records[0])


def _watch(settings: Settings, job: str, screen: Console) -> Job:
    """Follow the job until it ends or the user looks away; raises as `_follow` does."""
    try:
        return _follow(settings, job, screen)
    except KeyboardInterrupt:
        screen.print(f"{job} goes on: `salon watch {job}` follows it again", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _watch_all(settings: Settings, jobs: Sequence[str], out: Path, screen: Console) -> None:
    """Follow the jobs one after the other, and write a report over those that succeed.

    Raises:
        JobEnded: some did not.
    """
    folders, failures = [], []
    for job in jobs:
        try:
            folders.append(_watch(settings, job, screen).folder)
        except JobEnded as error:
            failures.append(str(error))
            screen.print(str(error), style="yellow", soft_wrap=True)
    if folders:
        compare(folders, out, screen)
    if failures:
        raise JobEnded(f"{len(failures)} of {len(jobs)} jobs did not succeed: {failures[0]}")


def _follow(settings: Settings, job: str, screen: Console) -> Job:
    """Follow the job, then say what came of it and where that lies.

    Raises:
        JobEnded: it failed or was cancelled.
    """
    # Patient: the job survives a restart of Redis, and so should who watches it.
    store = JobStore(connect(settings.redis_url))
    record = watch(store, job, screen, Queue(store, settings))
    if record.state is not JobState.SUCCEEDED:
        raise JobEnded(f"{job} {record.state.value}: {record.reason}")
    print_outcome(store, record, screen)
    return record
