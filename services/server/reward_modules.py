"""From a module's name and options to the rewards it holds."""

import difflib
import importlib
import inspect
import math
import pkgutil
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from threading import TIMEOUT_MAX
from types import ModuleType
from typing import Any

import structlog
from pydantic import ValidationError

from salon.errors import InvalidRequest, RewardFailed, SalonError
from salon.own_modules import namesake
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, RewardConfig, catalogue
from salon.stand_ins import is_stand_in
from services import rewards

logger = structlog.get_logger()


@dataclass(frozen=True)
class Choice:
    """A reward to host, checked but not loaded."""

    reward: type[Reward]
    config: RewardConfig | None

    def load(self) -> Reward:
        """Make it, which may take its minutes.

        Raises:
            InvalidRequest: it cannot be made of these options, or what it then says of itself
                cannot be used.
            RewardFailed: it failed; the log has the traceback.
        """
        name = f"{self.reward.__module__}.{self.reward.__name__}"
        try:
            # Where Config is set, __init__ takes one.
            made = self.reward(self.config) if self.config else self.reward()  # type: ignore[call-arg]
            if not hasattr(made, "version"):
                raise InvalidRequest(f"{name} must set version")
            _check_facts(made)
        except SalonError:
            raise
        except Exception as error:
            logger.exception("reward failed to load", reward=name)
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RewardFailed(f"{name} failed to load: {what}") from error
        options = self.config.model_dump().values() if self.config else ()
        if any(isinstance(option, str) and is_stand_in(option) for option in options):
            made.stand_in = True
        return made


def choose_rewards(name: str, options: Mapping[str, str] | None = None) -> list[Choice]:
    """Every reward class that a module defines, in the order it defines them, with its options.

    Args:
        name: a module of `services.rewards`, such as `jpeg`, or the dotted path of any other
            module, such as `my_package.my_reward`; followed by `:MyReward` for that class alone.
            Or the name of a reward, such as `jpeg_compressibility`, of `services.rewards` or of an
            installed package that registers it: that one alone.
        options: of the rewards' `Config`; each reward gets those it knows.

    Raises:
        InvalidRequest: no such module, no complete reward class in it, or options that cannot be
            used.
    """
    path, _, class_name = name.partition(":")
    listed = None if class_name else _listed(path)
    if listed is not None:
        path = listed.module.removeprefix(f"{rewards.__name__}.")
        class_name = listed.class_name
    module = _import(path)
    classes = _find_classes(module, class_name)
    for reward in classes:
        # A version may be set when the model is loaded.
        missing = [fact for fact in ("name", "description") if not hasattr(reward, fact)]
        if missing:
            raise InvalidRequest(
                f"{module.__name__}.{reward.__name__} must set {', '.join(missing)}"
            )
        _check_facts(reward)
    names = [reward.name for reward in classes]
    if listed is not None and names != [listed.name]:
        raise InvalidRequest(
            f"{listed.module}:{class_name} is registered as {listed.name!r} and its name is "
            f"{names[0]!r}: its package must give both the same"
        )
    for reward in classes:
        if names.count(reward.name) > 1:
            same = [each.__name__ for each in classes if each.name == reward.name]
            raise InvalidRequest(
                f"module {module.__name__}: {' and '.join(same)} have the same name "
                f"{reward.name!r}: give each its own"
            )
    _check_known(classes, options or {})
    return [Choice(reward, _configure(reward, options or {})) for reward in classes]


def _listed(name: str) -> catalogue.Listed | None:
    """The reward that is meant by a name alone; None where a module is.

    A module of Salon's comes first, then what an installed package calls so, then a module of the
    user's, and last a reward of Salon's.
    """
    if _is_module(f"{rewards.__name__}.{name}"):
        return None
    other = catalogue.of_other_packages().get(name)
    if other is not None or _is_module(name):
        return other
    return catalogue.own().get(name)


def _is_module(path: str) -> bool:
    try:
        return find_spec(path) is not None
    except (ImportError, ValueError):  # of a path whose package there is not
        return False


def _import(name: str) -> ModuleType:
    builtin = f"{rewards.__name__}.{name}"
    known = sorted(found.name for found in pkgutil.iter_modules(rewards.__path__))
    path = builtin if name in known else name
    if not all(part.isidentifier() for part in name.split(".")):
        raise _unknown(name, known)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        # A module that exists but lacks a dependency is another matter.
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise _unknown(name, known) from None
        if path == builtin:
            raise InvalidRequest(
                f"reward module {name} needs {error.name}: pip install 'salon[models]'"
            ) from None
        raise _broken(name, error) from error
    except SalonError:
        raise
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _broken(name: str, error: BaseException) -> InvalidRequest:
    """Of a module that cannot be imported: what is wrong with it, and in which line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<")]
    where = f"{own[-1].filename}, line {own[-1].lineno}"
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = f"{error.filename}, line {error.lineno}"
    said = str(error.msg if isinstance(error, SyntaxError) else error).splitlines()
    return InvalidRequest(
        f"module {name} cannot be imported: {where}: {': '.join([type(error).__name__, *said[:1]])}"
    )


def _unknown(name: str, modules: list[str]) -> InvalidRequest:
    known = catalogue.known()
    own = [file.stem for file in Path().glob("*.py")]
    if name in known:  # of one of whose classes the name was asked for
        near = [known[name].module.removeprefix(f"{rewards.__name__}.")]
    else:
        near = difflib.get_close_matches(name, [*known, *modules, *own], n=1)
    return InvalidRequest(
        f"no reward module {name!r}: {f'did you mean {near[0]}? Else ' if near else ''}"
        f"choose one of {', '.join(sorted(known))}, or give the path of your own module, such "
        "as my_package.my_reward or my_module:MyReward"
    )


def _find_classes(module: ModuleType, class_name: str) -> list[type[Reward]]:
    found = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Reward)
    }
    # A class may have a second name.
    own = list(dict.fromkeys(v for v in found.values() if v.__module__ == module.__name__))
    defined = own if not class_name else [found[class_name]] if class_name in found else []
    classes = [value for value in defined if not inspect.isabstract(value)]
    if not classes:
        lacking = [f"{each.__name__} lacks {', '.join(_abstract(each))}" for each in defined]
        if lacking:
            raise InvalidRequest(
                f"module {module.__name__} defines no complete reward: {'; '.join(lacking)}"
            )
        what = f"no complete {class_name}, a subclass" if class_name else "no subclass"
        there = f"; it has {', '.join(each.__name__ for each in own)}" if own else ""
        raise InvalidRequest(
            f"module {module.__name__} defines {what} of salon.serving.Reward"
            f"{there}{namesake(module)}"
        )
    return classes


def _abstract(reward: type[Reward]) -> list[str]:
    return sorted(getattr(reward, "__abstractmethods__", ()))


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not math.isnan(value)


def _is_one_of(value: object, numbers: Collection[int]) -> bool:
    return isinstance(value, Integral) and value in numbers


# The first of each is UNSPECIFIED.
_DIRECTIONS = reward_pb2.Direction.values()[1:]
_INPUTS = reward_pb2.Input.values()[1:]

_FACTS: Mapping[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str) and bool(catalogue.NAME.fullmatch(value)),
    "version": lambda value: isinstance(value, str),
    "description": lambda value: isinstance(value, str),
    "unit": lambda value: isinstance(value, str),
    "inputs": lambda value: (
        isinstance(value, Collection) and all(_is_one_of(each, _INPUTS) for each in value)
    ),
    "direction": lambda value: _is_one_of(value, _DIRECTIONS),
    "lower_bound": lambda value: value is None or _is_real(value),
    "upper_bound": lambda value: value is None or _is_real(value),
    "stand_in": lambda value: isinstance(value, bool),
    "max_batch": lambda value: _is_real(value) and value > 0,
    "threads": lambda value: isinstance(value, Integral) and int(value) > 0,
    "max_delay_seconds": lambda value: _is_real(value) and 0 <= value <= TIMEOUT_MAX,
}


def _check_facts(reward: type[Reward] | Reward) -> None:
    """What a reward says of itself goes onto the wire: of the wrong type it would fail every call.

    Raises:
        InvalidRequest: naming what is wrong.
    """
    kind = reward if isinstance(reward, type) else type(reward)
    for fact, is_right in _FACTS.items():
        value = getattr(reward, fact, "")  # a version may be set when the model is loaded
        if reward is kind and fact != "name" and hasattr(value, "__get__"):
            continue  # a property, whose value the instance has
        if not is_right(value):
            raise InvalidRequest(
                f"{kind.__module__}.{kind.__name__}: {fact} cannot be {value!r:.80}; see "
                "salon.serving.Reward"
            )


def _check_known(classes: list[type[Reward]], options: Mapping[str, str]) -> None:
    known = sorted({name for reward in classes for name in _fields(reward)})
    for option in options:
        if option not in known:
            raise InvalidRequest(
                f"{classes[0].name} has no option {option!r}; known: {', '.join(known) or 'none'}"
            )


def _fields(reward: type[Reward]) -> list[str]:
    return list(reward.Config.model_fields) if reward.Config else []


def _configure(reward: type[Reward], options: Mapping[str, str]) -> RewardConfig | None:
    if reward.Config is None:
        return None
    own = {name: value for name, value in options.items() if name in _fields(reward)}
    try:
        return reward.Config.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(
            f"option {option} of {reward.name}: {first['msg']} (got {first['input']!r})"
        ) from None
