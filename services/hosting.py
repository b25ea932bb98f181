"""From a module's name to the rewards it holds."""

import importlib
import inspect
import pkgutil

from salon.errors import InvalidRequest
from services import rewards
from services.reward import Reward


def load_rewards(name: str) -> list[Reward]:
    """An instance of every reward class that a module defines, in the order it defines them.

    Args:
        name: a module of `services.rewards`, such as `jpeg`, or the dotted path of any other
            module, such as `my_package.my_reward`.

    Raises:
        InvalidRequest: no such module, or no complete reward class in it.
    """
    path = name if "." in name else f"{rewards.__name__}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # A module that exists but lacks a dependency is another matter, and says so itself.
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        known = ", ".join(sorted(found.name for found in pkgutil.iter_modules(rewards.__path__)))
        raise InvalidRequest(
            f"no reward module {name!r}: choose one of {known}, "
            "or give the dotted path of your own, such as my_package.my_reward"
        ) from None
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Reward) and value.__module__ == path
    ]
    if not classes:
        raise InvalidRequest(f"module {path} defines no subclass of services.reward.Reward")
    for reward in classes:
        missing = [fact for fact in ("name", "version", "description") if not hasattr(reward, fact)]
        if missing:
            raise InvalidRequest(f"{path}.{reward.__name__} must set {', '.join(missing)}")
    return [reward() for reward in classes]
