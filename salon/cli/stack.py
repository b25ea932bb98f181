"""The commands about processes on this host: up, down, serve."""

import os
from typing import Annotated

import redis
import typer
from rich.table import Table

from salon.cli.terminal import console, print_table
from salon.errors import StackUnavailable
from salon.jobs.bound import bound_key
from salon.jobs.store import JobStore
from salon.own_modules import python
from salon.queue.connection import connect_now
from salon.redis_url import shown
from salon.settings import Settings, load_settings
from salon.stack import lifecycle
from salon.stack.local_services import DEFAULT_REWARDS


def up(
    rewards: Annotated[
        str, typer.Option(help="Rewards to serve, on tiny models: names with commas, or all.")
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
    table = Table("reward", "served at", box=None)
    for reward, target in state["rewards"].items():
        table.add_row(reward, target)
    print_table(table)
    console.print(f"redis at {shown(settings.redis_url)}", soft_wrap=True)


def down() -> None:
    """Stop the local stack; queued and running jobs go on after the next `salon up`."""
    settings = load_settings()
    left = _left_by(settings) if lifecycle.running(settings) else []
    with console.status("stopping the stack"):
        stopped = lifecycle.down(settings)
    console.print("stopped" if stopped else "no stack was running")
    for job in left:
        console.print(f"{job} is not over: it goes on after the next `salon up`", soft_wrap=True)


def _left_by(settings: Settings) -> list[str]:
    """The jobs that will not be over when the stack is down."""
    try:
        client = connect_now(settings.redis_url)
        bound = {raw.decode() for raw in client.smembers(bound_key(settings))}
        return [job.id for job in JobStore(client).unfinished() if job.id not in bound]
    except (StackUnavailable, redis.RedisError):
        return []  # there is nobody to ask, and the stack is to stop all the same


def serve(
    context: typer.Context,
    reward: Annotated[
        str, typer.Argument(help="A reward, e.g. jpeg_compressibility, or a module of them.")
    ],
) -> None:
    """Serve one reward in the foreground; options are those of `python -m services`."""
    command = python("services", reward, *context.args)
    os.execv(command[0], command)
