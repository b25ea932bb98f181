"""Which rewards there are, and what their classes say of themselves, read without importing them.

To import a reward would import torch. Salon's own are found in the sources of `services.rewards`;
those of other packages by the entry points in their metadata.
"""

import ast
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import resolve_name
from pathlib import Path
from typing import Literal

from salon.errors import InvalidRequest

GROUP = "salon.rewards"
"""Entry points of this group name reward classes: `sharpness = "my_package.sharp:Sharpness"`."""
OWN = "services.rewards"

NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,127}", re.ASCII)
"""Of a reward."""

_PLACE = re.compile(r"((?:\w+\.)*\w+):(\w+)")

log = logging.getLogger(__name__)

Needs = Literal["nothing", "reference", "metadata", "instance"]

_REWARD = ("salon.serving.reward", "Reward")
_LEARNED = ("salon.serving.learned_reward", "LearnedReward")


@dataclass(frozen=True)
class Listed:
    """A reward by its name, and where its class is."""

    name: str
    module: str
    class_name: str

    @property
    def needs(self) -> Needs | None:
        """What it needs besides image and prompt; None where its source does not say."""
        classes = _classes(self.module, self.class_name)
        if any(found.names == _LEARNED for found in classes):
            return "instance"
        stated = _attribute(classes, "inputs")
        if not isinstance(stated, ast.Tuple | ast.List):
            return None
        inputs = {_last_name(each) for each in stated.elts}
        if None in inputs:
            return None
        if "INPUT_METADATA" in inputs:
            return "metadata"
        return "reference" if "INPUT_REFERENCE" in inputs else "nothing"

    @property
    def local_options(self) -> tuple[str, ...]:
        """See `salon.serving.Reward.local_options`.

        Raises:
            InvalidRequest: they cannot be read.
        """
        stated = _attribute(_classes(self.module, self.class_name), "local_options")
        try:
            options = () if stated is None else ast.literal_eval(stated)
        except ValueError:
            options = None
        if not isinstance(options, tuple) or not all(
            isinstance(option, str) and "=" in option for option in options
        ):
            raise InvalidRequest(
                f"{self.module}.{self.class_name}: local_options must be a tuple of texts "
                "key=value, written out where they are assigned: the class is not imported for them"
            )
        return options


@cache
def own() -> Mapping[str, Listed]:
    """Salon's own rewards by name, a module's in the order in which it defines them."""
    spec = _Spec.find(OWN)
    folders = spec.folders if spec is not None else []
    modules = sorted(path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py"))
    found = [reward for module in modules for reward in _rewards_in(f"{OWN}.{module}")]
    return {reward.name: reward for reward in found}


@cache
def of_other_packages() -> Mapping[str, Listed]:
    """Those that installed packages register; none under a name of Salon's own.

    What a package registers amiss is named in the log, and stands in nobody's way.
    """
    taken = {name for reward in own().values() for name in (reward.name, _last(reward.module))}
    found: dict[str, Listed] = {}
    for point in entry_points(group=GROUP):
        place = _PLACE.fullmatch(point.value)
        if not NAME.fullmatch(point.name) or place is None:
            why = "it is not NAME = MODULE:CLASS"
        elif point.name in taken or point.name in found:
            why = "the name is taken"
        else:
            found[point.name] = Listed(point.name, place[1], place[2])
            continue
        log.warning("%s: left out %s = %s: %s", GROUP, point.name, point.value, why)
    return found


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def known() -> Mapping[str, Listed]:
    """All of them."""
    return {**own(), **of_other_packages()}


def _rewards_in(module: str) -> Iterator[Listed]:
    tree = _parsed(module)
    for node in tree.body if tree is not None else []:
        if not isinstance(node, ast.ClassDef):
            continue
        name = _attribute((_Class(module, node),), "name")
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            continue
        if any(found.names == _REWARD for found in _classes(module, node.name)):
            yield Listed(name.value, module, node.name)


@dataclass(frozen=True)
class _Class:
    module: str
    node: ast.ClassDef

    @property
    def names(self) -> tuple[str, str]:
        return self.module, self.node.name


@cache
def _classes(module: str, name: str) -> tuple[_Class, ...]:
    """The class and those that it inherits from, as far as their sources are found."""
    return tuple(_inherited(module, name, set()))


def _inherited(module: str, name: str, seen: set[tuple[str, str]]) -> Iterator[_Class]:
    tree = _parsed(module)
    if tree is None or (module, name) in seen:
        return
    seen.add((module, name))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield _Class(module, node)
            for base in node.bases:
                plain = base.value if isinstance(base, ast.Subscript) else base
                if isinstance(plain, ast.Name):
                    yield from _inherited(module, plain.id, seen)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    yield from _inherited(_imported(node, module), alias.name, seen)


def _imported(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    spec = _Spec.find(module)
    package = module if spec is not None and spec.folders else module.rpartition(".")[0]
    try:
        return resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:  # it leads out of every package
        return ""


def _attribute(classes: tuple[_Class, ...], name: str) -> ast.expr | None:
    """What is assigned to it in the body of the class, or else of the next one that it is of."""
    for found in classes:
        for statement in found.node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets = [statement.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                assert isinstance(statement, ast.Assign | ast.AnnAssign)  # noqa: S101 - for mypy
                return statement.value
    return None


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


@cache
def _parsed(module: str) -> ast.Module | None:
    """The source of a module, which is not imported; None where there is none."""
    spec = _Spec.find(module)
    if spec is None or spec.source is None:
        return None
    try:
        return ast.parse(spec.source.read_bytes())
    except (OSError, SyntaxError, ValueError):  # who serves it is told
        return None


@dataclass(frozen=True)
class _Spec:
    source: Path | None
    folders: list[str]
    """Of a package: where its modules are."""

    @classmethod
    def find(cls, module: str) -> "_Spec | None":
        """As `importlib.util.find_spec` does, which would import the packages that it is in."""
        found = folders = None
        names = module.split(".") if module else []
        for depth in range(1, len(names) + 1):
            name = ".".join(names[:depth])
            specs = (finder.find_spec(name, folders) for finder in sys.meta_path)
            found = next((spec for spec in specs if spec is not None), None)
            if found is None:
                return None
            folders = found.submodule_search_locations
            if folders is None and depth < len(names):
                return None
        if found is None:
            return None
        source = Path(found.origin) if found.origin and found.origin.endswith(".py") else None
        return cls(source, list(folders or []))
