"""What training did to one reward, as numbers and as a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from salon import numbers
from salon.numbers import decimals_for

NORMALIZATIONS = {
    "none": "",
    "zscore": " (normalised over each iteration)",
    "group": " (normalised over the samples of each prompt)",
}
"""What to say of a reward in the weighted sum."""

Verdict = Literal["better", "worse", "same"]
MARKS: Mapping[Verdict, str] = {"better": "▲", "worse": "▼", "same": ""}
"""Beside the colour, which not everyone sees."""


@dataclass(frozen=True)
class Result:
    """One reward of the summary; see `trainer.evaluation.held_out.effects` for the terms."""

    reward: str
    trained: bool  # or one of evaluation alone
    before: float | None
    after: float | None
    before_std: float | None
    after_std: float | None
    n: int
    effect_size: float | None
    ci95: tuple[float, float] | None
    undefined: str | None  # why one of those two is not there
    unit: str
    better: Literal["higher", "lower"]

    @classmethod
    def all_of(cls, summary: Mapping[str, Any]) -> list[Self]:
        """One for each reward, in the summary's order, those of evaluation alone at the end."""
        return [
            cls(
                reward=reward,
                trained=kind == "rewards",
                before=entry["before"]["mean"],
                after=entry["after"]["mean"],
                before_std=entry["before"]["std"],
                after_std=entry["after"]["std"],
                n=entry["before"]["n"],
                effect_size=entry["effect_size"],
                ci95=None if entry["ci95"] is None else (entry["ci95"][0], entry["ci95"][1]),
                # Runs of an older release have none of these.
                undefined=entry.get("undefined"),
                unit=entry.get("unit", ""),
                better=entry.get("better", "higher"),
            )
            for kind in ("rewards", "eval_rewards")
            for reward, entry in summary[kind].items()
        ]

    @property
    def label(self) -> str:
        """Its name, and that training did not see it where that is so."""
        return self.reward if self.trained else f"{self.reward} (not trained on)"

    @property
    def axis(self) -> str:
        """What to write along an axis of its scores."""
        return f"score in {self.unit}" if self.unit else "score"

    @property
    def decimals(self) -> int:
        """How many decimals this reward's scores deserve, wherever they are shown."""
        return decimals_for(self.before_std or self.after_std or self.before)

    def score(self, value: float | None) -> str:
        """A score of this reward, with its unit; a dash for an error."""
        return numbers.score(value, self.decimals, self.unit)

    def number(self, value: float | None) -> str:
        """A score where an axis says its unit."""
        return numbers.score(value, self.decimals)

    def level(self, kind: Literal["before", "after"]) -> str:
        """Mean ± standard deviation, e.g. "−38 ± 12 kB"."""
        mean, std = {
            "before": (self.before, self.before_std),
            "after": (self.after, self.after_std),
        }[kind]
        return numbers.mean_and_std(mean, std, self.decimals, self.unit)

    def verdict(self, before: float | None, after: float | None) -> Verdict:
        """Whether a score is better than another, as far as they are shown."""
        shown = self.score(before), self.score(after)
        if numbers.ABSENT in shown or shown[0] == shown[1] or before is None or after is None:
            return "same"
        return "better" if (after > before) == (self.better == "higher") else "worse"

    @property
    def outcome(self) -> Verdict:
        """Whether training made it better; only where the interval excludes 0."""
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1]:
            return "same"
        return self.verdict(self.before, self.after)

    @property
    def change(self) -> str:
        """E.g. "rises from −1.28 to −0.93"; a direction only where the interval excludes 0."""
        before, after = self.score(self.before), self.score(self.after)
        if self.before is None or self.after is None:
            return "has no image that got a score both before and after"
        if self.ci95 is None and before != after:
            return f"goes from {before} to {after}"
        if self.outcome == "same":
            return f"shows no clear change ({before} → {after})"
        return f"{'rises' if self.after > self.before else 'falls'} from {before} to {after}"

    @property
    def effect(self) -> str:
        """Effect size and its interval, e.g. "+2.31 [1.98, 2.70]", or why there is none."""
        return numbers.effect(self.effect_size, self.ci95, self.undefined)
