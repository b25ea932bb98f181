"""Hosted rewards by the names that callers give them."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from salon.errors import UnknownReward
from services.scoring.call import Call

_Reward = TypeVar("_Reward")


class NamedRewards(Generic[_Reward]):
    """The first of them is the default; there are none before `host`."""

    def __init__(self, kind: str) -> None:
        """Be called `kind` in errors, such as "reward"."""
        self._kind = kind
        self._rewards: Mapping[str, _Reward] = {}
        self._default = ""

    def host(self, rewards: Mapping[str, _Reward]) -> None:
        """Have these."""
        self._rewards = rewards
        self._default = next(iter(rewards), "")

    def __iter__(self) -> Iterator[_Reward]:
        return iter(self._rewards.values())

    def asked_for(self, name: str, call: Call) -> _Reward:
        """The one of that name, or the default for none; the call is from now on one for it.

        Raises:
            UnknownReward: there is none of that name.
        """
        # For logs and counts, where a name that callers made up must not take much room.
        call.reward = name[:80] or self._default
        found = self._rewards.get(name or self._default)
        if found is None:
            raise UnknownReward(
                f"no {self._kind} {name[:80]!r} here; this service hosts {', '.join(self._rewards)}"
            )
        return found
