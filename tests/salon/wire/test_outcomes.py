import math

import pytest

from salon.reward.v1 import reward_pb2 as pb
from salon.wire.outcomes import outcomes


def test_scores_errors_and_details_are_read() -> None:
    response = pb.ScoreResponse(reward="mean", version="3")
    response.outcomes.add(score=0.0, details={"caption": "a cat"})
    response.outcomes.add(
        error=pb.SampleError(code=pb.ERROR_CODE_INVALID_IMAGE, message="it is truncated")
    )
    first, second = outcomes(response)
    assert (first.score, first.error, first.details) == (0.0, None, {"caption": "a cat"})
    assert (first.reward, first.version) == ("mean", "3")
    assert second.score is None
    assert second.error is not None
    assert second.error.code_name == "ERROR_CODE_INVALID_IMAGE"
    assert str(second.error) == "it is truncated"


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_an_error(score: float) -> None:
    [outcome] = outcomes(pb.ScoreResponse(outcomes=[pb.Outcome(score=score)]))
    assert outcome.score is None
    assert outcome.error is not None
    assert outcome.error.code == pb.ERROR_CODE_NON_FINITE_SCORE


def test_an_outcome_with_no_result_is_an_error_not_a_zero() -> None:
    [outcome] = outcomes(pb.ScoreResponse(outcomes=[pb.Outcome()]))
    assert outcome.score is None
    assert "neither a score nor an error" in str(outcome.error)


def test_an_error_code_of_a_newer_service_is_kept() -> None:
    response = pb.ScoreResponse(outcomes=[pb.Outcome(error=pb.SampleError(code=99, message="new"))])
    [outcome] = outcomes(response)
    assert outcome.error is not None
    assert outcome.error.code_name == "99"


@pytest.mark.parametrize(
    ("unit", "kept"),
    [
        ("kB", "kB"),
        ("m²/s", "m²/s"),
        ("%", "%"),
        ("", ""),
        ("\x1b[2J", ""),
        ("<b>", ""),
        ("x" * 17, ""),
    ],
)
def test_a_unit_is_one_that_can_stand_beside_a_number(unit, kept):
    response = pb.ScoreResponse(outcomes=[pb.Outcome(score=1)], unit=unit)
    assert outcomes(response)[0].unit == kept
    assert not outcomes(response)[0].lower_is_better


def test_which_way_is_better_is_told():
    response = pb.ScoreResponse(
        outcomes=[pb.Outcome(score=1)], direction=pb.DIRECTION_LOWER_IS_BETTER
    )
    assert outcomes(response)[0].lower_is_better
