import pytest
from pydantic import ValidationError

from trainer.spec.stopping import StopRule, stop_of

METRIC = "eval/r/mean"


def stop(rule, values, step=10):
    """Of evaluations every `step` iterations with these values, None where there was none."""
    history = [
        (i * step, {} if value is None else {METRIC: value}) for i, value in enumerate(values)
    ]
    return stop_of([StopRule(metric=METRIC, **rule)], history)


@pytest.mark.parametrize(
    ("rule", "values", "iteration"),
    [
        # 0.8 - 0.5 is not more than 0.3 but for rounding; 0.75 - 0.375 is exact.
        ({"drop": 0.375}, [0.5, 0.75, 0.375], None),
        ({"drop": 0.374}, [0.5, 0.75, 0.375], 20),
        ({"drop": 0.2}, [0.9, 0.5], 10),  # the value before training is a high one, too
        ({"below": 0.1}, [0.0, 0.2, 0.1, 0.05], 30),  # before training nothing is stopped
        ({"above": 5.0}, [0.0, 5.0, 5.1], 20),
        ({"above": 5.0, "patience": 2}, [0, 6, 4, 6, 7, 9], 40),
        ({"above": 5.0, "patience": 2}, [0, 6, None, 7], 30),  # no value counts neither way
        ({"below": -1.0}, [0, None, None], None),
        ({"drop": 1.0}, [], None),
    ],
)
def test_when_a_rule_applies(rule, values, iteration):
    found = stop(rule, values)
    assert (found and found.iteration) == iteration


def test_a_stop_says_on_what_grounds():
    found = stop({"drop": 0.5, "patience": 2}, [1.0, 2.0, 1.4, 1.25])
    assert found.values == [1.4, 1.25]
    assert (found.highest, found.metric) == (2.0, METRIC)
    assert found.rule == (
        "eval/r/mean fell more than 0.5 below its highest in 2 evaluations in a row"
    )


def test_a_run_that_was_resumed_decides_as_one_that_was_not():
    """The rules see the history alone; judged after each evaluation they agree with all at once."""
    values = [1.0, 2.0, 1.4, 1.9, 1.3, 1.2, 3.0]
    rule = {"drop": 0.5, "patience": 2}
    whole = stop(rule, values)
    first = next(s for n in range(len(values)) if (s := stop(rule, values[: n + 1])))
    assert first == whole
    assert whole.iteration == 50


def test_of_several_rules_the_earliest_stop_counts_and_then_the_first_named():
    rules = [
        StopRule(metric="b", above=1),
        StopRule(metric="a", below=0),
        StopRule(metric="c", above=1),
    ]
    history = [
        (0, {"a": 1, "b": 0, "c": 0}),
        (5, {"a": -1, "b": 0, "c": 2}),
        (9, {"a": -1, "b": 2, "c": 2}),
    ]
    assert stop_of(rules, history).metric == "a"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "one of drop, below and above, got none"),
        ({"drop": 1, "above": 2}, "got drop and above"),
        ({"drop": 0}, "greater than 0"),
        ({"above": 1, "patience": 0}, "greater than or equal to 1"),
        ({"above": float("nan")}, "finite"),
    ],
)
def test_a_rule_has_exactly_one_limit(limits, words):
    with pytest.raises(ValidationError, match=words):
        StopRule(metric="kl", **limits)


def test_a_limit_below_zero_has_the_minus_of_all_other_numbers():
    assert str(StopRule(metric="eval/jpeg/mean", below=-5)) == "eval/jpeg/mean was below −5"
