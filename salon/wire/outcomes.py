"""What a reward service said about each sample: a score or an error."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.wire.structs import to_dict

_UNIT = re.compile(r"[\w%°²³µ/·^. -]{1,16}")
"""What may stand beside a number in a terminal, a page or a table: no markup, no control codes."""


@dataclass(frozen=True)
class Outcome:
    """One sample's result: exactly one of `score` and `error` is None, and a score is finite."""

    score: float | None
    error: SampleError | None
    details: Mapping[str, Any]
    reward: str
    version: str
    stand_in: bool = False
    """Whether a small model answered that stands in for the real one."""
    unit: str = ""
    """What the score is counted in, such as kB; empty for a plain number."""
    lower_is_better: bool = False


def outcomes(response: reward_pb2.ScoreResponse) -> list[Outcome]:
    """The outcomes in `response`, in its order.

    A service that broke the contract (no result, a NaN, an infinity) yields an error for that
    sample here, so that no caller mistakes it for a score.
    """
    return [_outcome(response, message) for message in response.outcomes]


def _outcome(response: reward_pb2.ScoreResponse, message: reward_pb2.Outcome) -> Outcome:
    score: float | None = None
    error: SampleError | None = None
    result = message.WhichOneof("result")
    if result == "score" and math.isfinite(message.score):
        score = message.score
    elif result == "score":
        error = SampleError(
            reward_pb2.ERROR_CODE_NON_FINITE_SCORE,
            f"reward {response.reward} sent {message.score} as a score",
        )
    elif result == "error":
        error = SampleError(message.error.code, message.error.message)
    else:
        error = SampleError(
            reward_pb2.ERROR_CODE_UNSPECIFIED,
            f"reward {response.reward} sent neither a score nor an error; "
            "it may speak a newer contract: update salon",
        )
    return Outcome(
        score,
        error,
        to_dict(message.details),
        response.reward,
        response.version,
        stand_in=response.stand_in,
        unit=response.unit if _UNIT.fullmatch(response.unit) else "",
        lower_is_better=response.direction == reward_pb2.DIRECTION_LOWER_IS_BETTER,
    )
