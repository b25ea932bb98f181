"""The `salon` command: its commands by name, and how it ends."""

import inspect
import sys
from importlib.metadata import version
from typing import Annotated

import redis
import typer
from kombu.exceptions import OperationalError

from salon.cli import jobs, resume, stack, status, submit
from salon.cli.ctrl_c import never_lose_ctrl_c
from salon.cli.score import score
from salon.cli.terminal import EXIT_ERROR, console, prepare, print_error
from salon.cli.token import token
from salon.errors import SalonError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        console.print(f"salon {version('salon')}")
        raise typer.Exit


@app.callback()
def _salon(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Score images with reward models; fine-tune image generators against them."""


app.command()(stack.up)
app.command()(stack.down)
app.command()(status.status)
# All of its arguments are those of `python -m services`, --help among them.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(stack.serve)
app.command()(score)
app.command()(token)
app.command()(submit.submit)
app.command()(submit.run)
app.command("jobs")(jobs.list_jobs)
app.command()(jobs.show)
app.command("watch")(submit.watch_job)
app.command("logs")(jobs.show_logs)
app.command()(jobs.cancel)
app.command()(resume.resume)
app.command()(resume.answer)
app.command()(jobs.report)
for command in app.registered_commands:  # whose help wraps where the terminal ends
    paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
    command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main() -> None:
    """Run the command; an error the user can mend is one line, not a traceback."""
    prepare()
    never_lose_ctrl_c()
    try:
        app()
    except (SalonError, redis.RedisError, OperationalError, OSError) as error:
        print_error(error)
        sys.exit(EXIT_ERROR)
