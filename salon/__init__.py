"""Salon: image reward models as services, and reinforcement learning of image generators."""

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
