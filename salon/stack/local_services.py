"""The reward services of the local stack: which it starts, with which models, and where."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from salon.errors import InvalidRequest, UnknownReward
from salon.serving import catalogue
from salon.serving.catalogue import Needs
from salon.settings import Settings
from salon.stand_ins import is_stand_in

ALL = "all"
DEFAULT_REWARDS = ("jpeg_compressibility", "jpeg_incompressibility")


@dataclass(frozen=True)
class LocalService:
    """What one process hosts: a module of Salon's rewards, or one reward of another package."""

    served: str
    """As `python -m services` is told."""
    process: str
    """What the process is called."""
    rewards: tuple[str, ...]
    options: tuple[str, ...]
    """For `--set`, as `Reward.local_options` has them."""

    def command_options(self, settings: Settings) -> list[str]:
        """The options as arguments of `python -m services`.

        Raises:
            InvalidRequest: a tiny model is not there.
        """
        arguments = []
        for option in self.options:
            name, _, value = option.partition("=")
            arguments += ["--set", f"{name}={self._resolve(value, settings)}"]
        return arguments

    def _resolve(self, value: str, settings: Settings) -> str:
        where, _, rest = value.partition(":")
        if where == "state":
            return str(settings.state_dir / rest)
        if where == "package":
            package, _, path = rest.partition("/")
            return str(self._folder_of(package) / path)
        if value.startswith("models/") and not Path(value).exists():
            raise InvalidRequest(
                f"{self.served} needs {value}, which is not in {Path.cwd()}: start the stack in "
                "the folder that holds salon's models"
            )
        return value

    def _folder_of(self, package: str) -> Path:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InvalidRequest(
                f"{self.served} needs a model of the package {package} here, which is not "
                f"installed: pip install {package.replace('_', '-')}"
            )
        return Path(spec.origin).parent


def salons_own() -> list[LocalService]:
    """A service for each module of `services.rewards`, those that need no model first."""
    modules: dict[str, list[catalogue.Listed]] = {}
    for reward in catalogue.own().values():
        modules.setdefault(reward.module.rpartition(".")[2], []).append(reward)
    services = [_hosting(module, module, rewards) for module, rewards in modules.items()]
    return sorted(services, key=lambda service: bool(service.options))


def _hosting(served: str, process: str, rewards: Sequence[catalogue.Listed]) -> LocalService:
    options = dict.fromkeys(option for reward in rewards for option in reward.local_options)
    return LocalService(served, process, tuple(reward.name for reward in rewards), tuple(options))


def local_services(settings: Settings, rewards: Iterable[str]) -> list[LocalService]:
    """The services that the stack must start so that all of `rewards` are served.

    A reward that has an address of its own in `settings.reward_targets` is served there already.

    Args:
        settings: those of the stack.
        rewards: names; `all` are Salon's own.

    Raises:
        UnknownReward: nobody serves one of them; the message lists those known.
        InvalidRequest: what one of another package says of itself cannot be read.
    """
    known = catalogue.known().keys()
    wanted = set(rewards)
    if ALL in wanted:
        wanted = (wanted - {ALL}) | catalogue.own().keys()
    wanted -= settings.reward_targets.keys()
    if unknown := sorted(wanted - known):
        meant = [near for name in unknown if (near := misspelt(name, known))]
        raise UnknownReward(
            f"the local stack has no reward {', '.join(unknown)}; "
            f"{'did you mean ' + ', '.join(meant) + '? ' if meant else ''}"
            f"it has {', '.join(sorted(known))}"
            "; for one of your own, serve it and name its address in SALON_REWARD_TARGETS"
        )
    chosen = [service for service in salons_own() if wanted.intersection(service.rewards)]
    others = catalogue.of_other_packages()
    return chosen + [
        _hosting(name, f"reward-{name}", [others[name]]) for name in sorted(wanted & others.keys())
    ]


def refuse_misspelt(rewards: Iterable[str], served: Collection[str]) -> None:
    """Refuse names that nobody serves and that are nearly those of rewards there are.

    A job waits for a reward that is not served yet; for one of these it would wait in vain.

    Args:
        rewards: that a job names.
        served: what scoring workers say that they serve.

    Raises:
        UnknownReward: one line: the name, and what was meant.
    """
    known = catalogue.known().keys() | set(served)
    for name in rewards:
        if name not in known and (near := misspelt(name, known)):
            raise UnknownReward(
                f"no worker scores {name}: did you mean {near}? If it is one of your own, start "
                "its scoring worker first"
            )


def misspelt(name: str, known: Iterable[str]) -> str:
    """The one of `known` that `name` is a letter or two from; empty if there is none.

    Another number is another version, not a slip. A module of services stands for its first reward.
    """
    known = set(known)
    rewards = {service.process: service.rewards[0] for service in salons_own()}
    rewards = {module: reward for module, reward in rewards.items() if reward in known}
    rewards |= {reward: reward for reward in known}
    others = {_plain(key): rewards[key] for key in rewards if _digits(key) == _digits(name)}
    near = difflib.get_close_matches(_plain(name), others, n=1, cutoff=0.85)
    return others[near[0]] if near else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _digits(name: str) -> str:
    return re.sub(r"[^0-9]", "", name)


def stands_in(settings: Settings, reward: str) -> bool:
    """Whether the local stack serves `reward` by a small model in place of the real one."""
    return reward not in settings.reward_targets and any(
        is_stand_in(value)
        for service in salons_own()
        if reward in service.rewards
        for value in (option.partition("=")[2] for option in service.options)
    )


def needs_of(settings: Settings, reward: str) -> Needs | None:
    """What `reward` needs besides image and prompt; None where it is not known here.

    A reward that has an address of its own in `settings.reward_targets` may be another one of the
    same name.
    """
    if reward in settings.reward_targets:
        return None
    found = catalogue.known().get(reward)
    return found.needs if found is not None else None


def service_targets(settings: Settings, services: Sequence[LocalService]) -> list[str]:
    """host:port of each service: consecutive ports from SALON_REWARD_TARGET's on.

    Raises:
        InvalidRequest: SALON_REWARD_TARGET is no host:port, or the ports run out.
    """
    host, port = address(settings.reward_target)
    if port + len(services) - 1 > 65535:
        raise InvalidRequest(
            f"SALON_REWARD_TARGET is {settings.reward_target}, and {len(services)} services need "
            f"as many ports from {port} on: set a lower one"
        )
    return [f"{host}:{port + index}" for index in range(len(services))]


def reward_targets(settings: Settings, services: Sequence[LocalService]) -> dict[str, str]:
    """host:port by reward, for all that the services host and all that is served elsewhere."""
    own = {
        reward: target
        for service, target in zip(services, service_targets(settings, services), strict=True)
        for reward in service.rewards
    }
    return own | settings.reward_targets


def address(netloc: str) -> tuple[str, int]:
    """Host and port of `host:port`, as SALON_REWARD_TARGET has them.

    Raises:
        InvalidRequest: it is something else.
    """
    host, _, port = netloc.partition(":")
    if not host or not port.isdigit():
        raise InvalidRequest(f"SALON_REWARD_TARGET: {netloc!r} is not host:port")
    return host, int(port)
