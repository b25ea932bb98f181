"""Mean, spread and effect of scores, and when they cannot be had: decided here for all who ask.

A standard deviation that is reported is that of a sample, with N − 1 in its denominator: of
training (`metrics.jsonl`, what `salon watch` shows), of evaluation, and in `summary.json`. Where an
algorithm normalises by one, its paper or its authors' code says which.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salon.numbers import is_rounding

RESAMPLES = 10_000
AT_ONCE = 2**20  # scores of resamples in memory
FEWEST_PAIRS = 5
"""For an interval: a tail of it is 1 resample in 40, and 4 pairs have but 35 different ones."""
TAIL = 2.5  # percent

Scores = NDArray[np.float64]


def groups(keys: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """The places [n] of each key among `keys`, in order."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return {key: np.array(found, dtype=np.intp) for key, found in places.items()}


def has_spread(scores: Scores) -> bool:
    """Whether `scores` [N], finite, differ by more than the rounding of numbers of their size."""
    if len(scores) < 2:
        return False
    return not is_rounding(float(scores.std(ddof=1)), float(np.abs(scores).max()))


def sample_std(scores: Scores) -> float:
    """The standard deviation of `scores` [N] as of a sample; 0 without spread, NaN if N < 2."""
    if len(scores) < 2:
        return float("nan")
    return float(scores.std(ddof=1)) if has_spread(scores) else 0.0


def compare(before: Scores, after: Scores) -> dict[str, Any]:
    """Means, spreads and the standardised difference of paired scores [N].

    effect_size = (mean after − mean before) / std before (Glass's Δ, Glass 1976). ci95 is its
    percentile bootstrap interval over pairs (Efron & Tibshirani 1993, ch. 13), 10,000 resamples
    with a fixed seed. Pairs with an error on either side are left out.

    effect_size is None where the scores before have no spread beside their own size. ci95 is None,
    besides, of fewer than `FEWEST_PAIRS`, where all pairs are equal, and where more resamples than
    a tail holds have no spread and so no effect size. `undefined` then says why; it is None where
    there are both.
    """
    both = np.isfinite(before) & np.isfinite(after)
    before, after = before[both], after[both]
    effect_size, ci95, undefined = _effect(before, after)
    return {
        "before": _describe(before),
        "after": _describe(after),
        "effect_size": effect_size,
        "ci95": ci95,
        "undefined": undefined,
    }


def _effect(before: Scores, after: Scores) -> tuple[float | None, list[float] | None, str | None]:
    """Effect size, interval, and why one of them is not there."""
    count = len(before)
    if count < 2:
        return None, None, f"{'one image has' if count else 'no image has'} a score both times"
    if not has_spread(before):
        return None, None, "the scores before do not differ"
    magnitude = float(np.abs([before, after]).max())
    if is_rounding(float(np.abs(after - before).max()), magnitude):
        return 0.0, None, "every image scores as it did before"
    size = float((after.mean() - before.mean()) / before.std(ddof=1))
    if count < FEWEST_PAIRS:
        return size, None, f"{count} images are fewer than the {FEWEST_PAIRS} it takes"
    effects = _resampled_effects(before, after)
    if np.isnan(effects).mean() > TAIL / 100:
        return size, None, "too few of the scores before differ"
    low, high = np.nanpercentile(effects, [TAIL, 100 - TAIL])
    return size, [float(low), float(high)], None


def _resampled_effects(before: Scores, after: Scores) -> Scores:
    """The effect size of each resample [RESAMPLES], NaN of one without spread."""
    random = np.random.default_rng(0)
    rows = max(1, AT_ONCE // len(before))
    parts = []
    for start in range(0, RESAMPLES, rows):
        draws = random.integers(0, len(before), (min(rows, RESAMPLES - start), len(before)))
        resampled = before[draws]
        spread = resampled.std(axis=1, ddof=1)
        largest = np.abs(resampled).max(axis=1)
        spread[[is_rounding(*of) for of in zip(spread, largest, strict=True)]] = np.nan
        parts.append((after[draws].mean(axis=1) - resampled.mean(axis=1)) / spread)
    return np.concatenate(parts)


def _describe(scores: Scores) -> dict[str, Any]:
    spread = sample_std(scores)
    return {
        "mean": float(scores.mean()) if len(scores) else None,
        "std": None if np.isnan(spread) else spread,
        "n": len(scores),
    }
