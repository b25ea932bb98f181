"""`salon token`."""

from pathlib import Path
from typing import Annotated

import typer

from salon.cli.terminal import console
from salon.tokens import add_token


def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; one word, for the logs.")],
    file: Annotated[Path, typer.Argument(help="The services' --tokens file, made if need be.")],
) -> None:
    """Make a bearer token: its hash is added to FILE, the token itself is printed, once."""
    console.print(add_token(name, file), soft_wrap=True)
