"""The commands about processes on this host: up, down, serve."""

import os
from typing import Annotated

import redis
import typer
from rich.table import Table

from salon.cli.terminal import console, notices, print_table
from salon.errors import StackUnavailable
from salon.jobs.bound import bound_key
from salon.jobs.record import Job, JobState
from salon.jobs.store import JobStore
from salon.own_modules import PROGRAM, python
from salon.queue.connection import connect_now
from salon.redis_url import shown
from salon.settings import Settings, load_settings
from salon.stack import lifecycle
from salon.stack.local_services import DEFAULT_REWARDS, stands_in

STAND_IN = "a stand-in, for trying out"


def up(
    rewards: Annotated[
        str,
        typer.Option(
            help="Rewards to serve, on tiny models: names with commas, or all of Salon's."
        ),
    ] = ",".join(DEFAULT_REWARDS),
) -> None:
    """Start the local stack: Redis, reward services, a scoring and a training worker."""
    settings = load_settings()
    names = [name.strip() for name in rewards.split(",")]
    with console.status("starting the stack"):
        state = lifecycle.up(settings, names)
    table = Table("process", "pid", box=None)
    table.add_column("log", no_wrap=True)
    for child in state["children"]:
        log_file = settings.state_dir / "logs" / f"{child['name']}.log"
        table.add_row(child["name"], str(child["pid"]), str(log_file))
    print_table(table)
    table = Table("reward", "served at", "", box=None)
    for reward, target in state["rewards"].items():
        table.add_row(reward, target, STAND_IN if stands_in(settings, reward) else "")
    print_table(table)
    console.print(f"redis at {shown(settings.redis_url)}", soft_wrap=True)


def down() -> None:
    """Stop the local stack; queued and running jobs go on after the next `salon up`."""
    settings = load_settings()
    left = _left_by(settings) if lifecycle.running(settings) else []
    for job in left:
        if job.state is JobState.RUNNING:
            notices.print(
                f"{job.id} is running: its trainer has {settings.grace_seconds:g} s to end its "
                "step and to write a checkpoint",
                soft_wrap=True,
            )
    stopped = stop(settings)
    console.print("stopped" if stopped else "no stack was running")
    for job in left:
        if not job.cancel_requested:
            waits = job.state is JobState.WAITING
            after = "hears its answer" if waits else "goes on"
            said = f"{job.id} is not over: it {after} after the next `salon up`"
            console.print(said, soft_wrap=True)


def stop(settings: Settings) -> bool:
    """Stop the stack, and say meanwhile what that waits for; returns whether there was one."""
    with notices.status("stopping the stack") as said:
        return lifecycle.down(
            settings, waiting=lambda names: said.update(f"waiting for {', '.join(names)} to stop")
        )


def _left_by(settings: Settings) -> list[Job]:
    """The jobs that will not be over when the stack is down, unless they were cancelled."""
    try:
        client = connect_now(settings.redis_url)
        bound = {raw.decode(errors="replace") for raw in client.smembers(bound_key(settings))}
        return [job for job in JobStore(client).unfinished() if job.id not in bound]
    except (StackUnavailable, redis.RedisError):
        return []  # there is nobody to ask, and the stack is to stop all the same


def serve(context: typer.Context) -> None:
    """Serve one reward in the foreground, as `salon serve jpeg_compressibility`."""
    command = python("services", *context.args)
    os.execve(command[0], command, os.environ | {PROGRAM: "salon serve"})
