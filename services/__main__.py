"""`python -m services MODULE`: host the rewards of one module over gRPC."""

import logging
import os
import sys
from typing import Annotated

import typer

from salon import logs
from salon.errors import SalonError
from salon.images import ImageLimits
from services.hosting import load_rewards
from services.limits import Limits
from services.server import ServerOptions, check_address, serve

_SERVER = ServerOptions()
_LIMITS = Limits()


def main(
    module: Annotated[
        str, typer.Argument(help="A module of services.rewards, or the dotted path of your own.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = _SERVER.host,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 picks a free one.")
    ] = _SERVER.port,
    threads: Annotated[int, typer.Option(min=1, help="Calls worked on at once.")] = _SERVER.threads,
    max_concurrent_calls: Annotated[
        int, typer.Option(min=1, help="Calls held at once; further ones are refused.")
    ] = _SERVER.max_concurrent_calls,
    max_message_bytes: Annotated[
        int, typer.Option(min=1024, help="Largest message, both ways.")
    ] = _LIMITS.max_message_bytes,
    max_samples: Annotated[
        int, typer.Option(min=1, help="Most samples in one call.")
    ] = _LIMITS.max_samples,
    max_prompt_bytes: Annotated[
        int, typer.Option(min=0, help="Longest prompt, in UTF-8.")
    ] = _LIMITS.max_prompt_bytes,
    max_image_side: Annotated[
        int, typer.Option(min=1, help="Greatest height and width of an image.")
    ] = _LIMITS.image.max_side,
    max_image_pixels: Annotated[
        int, typer.Option(min=1, help="Greatest height times width of an image.")
    ] = _LIMITS.image.max_pixels,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that calls in flight may take after SIGTERM.")
    ] = _SERVER.grace_seconds,
    reflection: Annotated[
        bool, typer.Option("--reflection", help="Let tools such as grpcurl list the service.")
    ] = _SERVER.reflection,
) -> None:
    """Host the rewards that MODULE defines; the first is the default."""
    logs.configure("reward-service")
    options = ServerOptions(host, port, threads, max_concurrent_calls, grace, reflection)
    image_limits = ImageLimits(max_image_side, max_image_pixels)
    limits = Limits(max_samples, max_message_bytes, max_prompt_bytes, image_limits)
    try:
        # Before a model takes its minutes to load.
        check_address(host, port)
        serve(load_rewards(module), options, limits)
    except SalonError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    # A thread may still compute for a caller who is gone, and Python would wait for it without end.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
