"""When training ends before its last iteration: rules on what evaluation measures; no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from salon.numbers import plain
from trainer.spec.sections import Section

LIMITS = ("drop", "below", "above")


class StopRule(Section):
    """One reason to stop: a metric beyond one limit, in so many evaluations in a row."""

    metric: str = Field(
        description="What evaluation measures: eval/<reward>/mean, eval/diversity or eval/kl."
    )
    drop: float | None = Field(
        None, gt=0, description="Stop when the metric is lower than its highest value by this much."
    )
    below: float | None = Field(None, description="Stop when the metric is lower than this.")
    above: float | None = Field(None, description="Stop when the metric is higher than this.")
    patience: int = Field(1, ge=1, description="Evaluations in a row in which it must be so.")

    @model_validator(mode="after")
    def _has_one_limit(self) -> Self:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a rule on {self.metric} has one of drop, below and above, got "
                f"{' and '.join(given) or 'none'}; several limits are several rules"
            )
        return self

    def fulfilled(self, value: float, highest: float) -> bool:
        """Whether `value` is beyond the limit; `highest` is the highest so far, this one too."""
        if self.drop is not None:
            return highest - value > self.drop
        if self.below is not None:
            return value < self.below
        return self.above is not None and value > self.above

    def __str__(self) -> str:
        if self.drop is not None:
            limit = f"fell more than {plain(self.drop)} below its highest"
        elif self.below is not None:
            limit = f"was below {plain(self.below)}"
        elif self.above is not None:
            limit = f"was above {plain(self.above)}"
        times = "" if self.patience == 1 else f" in {self.patience} evaluations in a row"
        return f"{self.metric} {limit}{times}"


@dataclass(frozen=True)
class Stop:
    """That a rule ended the training, and on what grounds."""

    iteration: int
    rule: str
    metric: str
    values: list[float]  # those that the rule counted, the last one at `iteration`
    highest: float  # of all evaluations up to then


def stop_of(
    rules: Sequence[StopRule], history: Sequence[tuple[int, Mapping[str, float]]]
) -> Stop | None:
    """The first rule that ends the training, judged anew from all that was measured.

    Nothing is remembered between evaluations, so a resumed run decides as one that was never
    interrupted. The evaluation before training counts for the highest value alone.

    Args:
        rules: in the order in which they are named when several apply at once.
        history: (iteration, metrics) of every evaluation so far, iterations ascending from 0; a
            metric that could not be measured is absent, and that evaluation counts neither way.
    """
    stops = [stop for rule in rules if (stop := _judge(rule, history))]
    return min(stops, key=lambda stop: stop.iteration, default=None)


def _judge(rule: StopRule, history: Sequence[tuple[int, Mapping[str, float]]]) -> Stop | None:
    highest = float("-inf")
    beyond: list[float] = []
    for iteration, metrics in history:
        if rule.metric not in metrics:
            continue
        value = metrics[rule.metric]
        highest = max(highest, value)
        if iteration == 0:
            continue
        beyond = [*beyond, value] if rule.fulfilled(value, highest) else []
        if len(beyond) == rule.patience:
            return Stop(iteration, str(rule), rule.metric, beyond, highest)
    return None
