"""A job's spec before it is submitted: checked, and what of it is worth a line on the screen."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salon.client import RewardClient, Security
from salon.errors import InvalidRequest, SalonError
from salon.settings import Settings
from salon.stand_ins import is_stand_in, refusal

_ASK_SECONDS = 3.0
MAX_SEEDS = 100  # jobs of one command
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


@dataclass(frozen=True)
class CheckedSpec:
    """A spec that is right, as JSON values: what a job's record holds."""

    name: str
    resolved: Mapping[str, Any]
    changed: Mapping[str, Any]  # without what has its default

    @property
    def rewards(self) -> list[str]:
        """All that it asks for, for training and for evaluation."""
        return rewards_of(self.resolved)

    def outline(self) -> dict[str, Any]:
        """What differs from the defaults, prompts counted instead of listed."""
        shown = dict(self.changed)
        # A default too, but of the two it is the one that says what the rest means.
        shown["algorithm"] = {"name": self.resolved["algorithm"]["name"], **shown["algorithm"]}
        if "prompts" in shown:
            shown["prompts"] = _count(shown["prompts"])
        if "prompts" in shown.get("evaluation", {}):
            prompts = _count(shown["evaluation"]["prompts"])
            shown["evaluation"] = {**shown["evaluation"], "prompts": prompts}
        return shown


def _count(rows: Sequence[str | Mapping[str, Any]]) -> str:
    first = rows[0] if isinstance(rows[0], str) else rows[0]["prompt"]
    carried = sorted({key for row in rows if not isinstance(row, str) for key in row} - {"prompt"})
    return f"{len(rows)} prompts, e.g. {first}" + f", with {' and '.join(carried)}" * bool(carried)


def rewards_of(resolved: Mapping[str, Any]) -> list[str]:
    """The names of all rewards that a resolved spec asks for.

    Whoever may write to Redis chose what a record holds: what is no name there is left out.
    """
    trained = [
        reward.get("name") if isinstance(reward, Mapping) else None
        for reward in _listed(resolved, "rewards")
    ]
    names = [*trained, *_listed(resolved, "eval_rewards")]
    return [name for name in names if isinstance(name, str)]


def _listed(resolved: Mapping[str, Any], key: str) -> list[Any]:
    found = resolved.get(key)
    return found if isinstance(found, list) else []


def check(
    settings: Settings, path: Path, overrides: Sequence[str], *, here: bool = False
) -> CheckedSpec:
    """Read a spec and check all of it that can be checked before it runs, on this host or another.

    Raises:
        InvalidRequest: it cannot be run as it is.
    """
    # The one thing above the ground floor this command knows, and only to check a spec early.
    from trainer.spec.file import load_spec  # noqa: PLC0415

    spec = load_spec(path, list(overrides))
    spec.check_inputs(settings, here=here)
    changed = spec.model_dump(mode="json", exclude_defaults=True)
    return CheckedSpec(spec.name, spec.model_dump(mode="json"), changed)


def check_stand_ins(
    model: str, rewards: Iterable[str], targets: Mapping[str, str], security: Security
) -> None:
    """Ask the services that are known where a job is submitted; the trainer asks all.

    Args:
        model: the generator.
        rewards: names of those that score it.
        targets: host:port by reward, as far as they are known.
        security: for these services.

    Raises:
        InvalidRequest: the generator is no stand-in, and some of the rewards are.
    """
    if is_stand_in(model):
        return
    found = [name for name in rewards if name in targets and _serves(targets[name], name, security)]
    if found:
        raise refusal(found, model)


def _serves(target: str, reward: str, security: Security) -> bool:
    try:
        with RewardClient(target, security=security) as client:
            return client.describe(reward, deadline=_ASK_SECONDS).stand_in
    except SalonError:  # it may be there when the job is: its first answer says what it is
        return False


def parse_seeds(text: str) -> list[int]:
    """The seeds of `0-4` or `0,3,7`, or of both mixed, each once, in the order given.

    Raises:
        InvalidRequest: they are something else, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InvalidRequest(f"--seeds {text!r}: {part!r} is no seed and no range such as 0-4")
        if last - first >= MAX_SEEDS or len(seeds) + last - first >= MAX_SEEDS:
            raise InvalidRequest(f"--seeds {text!r}: one command submits at most {MAX_SEEDS} jobs")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InvalidRequest(f"--seeds {text!r} names a seed twice: its job would be the same")
    return seeds
