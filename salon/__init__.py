"""Salon: image reward models as services, and reinforcement learning of image generators."""

# As `typing` has it, for type checkers. Nothing is imported here: who starts a process puts the
# working folder last first (`salon.own_modules`), and that lies in this package.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from salon.client import RewardClient
    from salon.errors import (
        DeadlineExceeded,
        InvalidRequest,
        Overloaded,
        RewardFailed,
        SalonError,
        SampleError,
        ServiceUnavailable,
        StackUnavailable,
        UnknownReward,
    )
    from salon.wire.outcomes import Outcome
else:

    def __getattr__(name: str) -> object:
        """What the package has by this name, imported when it is first asked for."""
        from importlib import import_module  # noqa: PLC0415

        if name in ("client", "errors"):
            return import_module(f"salon.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = {"RewardClient": "client", "Outcome": "wire.outcomes"}.get(name, "errors")
        found = getattr(import_module(f"salon.{home}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "DeadlineExceeded",
    "InvalidRequest",
    "Outcome",
    "Overloaded",
    "RewardClient",
    "RewardFailed",
    "SalonError",
    "SampleError",
    "ServiceUnavailable",
    "StackUnavailable",
    "UnknownReward",
]
