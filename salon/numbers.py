"""Numbers as people read them: one kind of minus, and no more digits than the spread supports.

Whatever shows a score (report, card, slide, events, terminal) writes it by these functions, so that
one run has the same number everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "—"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

FLOAT32_STEP = 2.0**-23
"""How far neighbouring float32 numbers are apart, as a share of themselves."""


def is_number(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def is_rounding(spread: float, magnitude: float) -> bool:
    """Whether numbers as large as `magnitude` that lie `spread` apart may be one number, rounded.

    Rewards compute in float32 at best, so what is not above one step of it says nothing: equal
    scores have a standard deviation of 10⁻¹⁷ and not of 0 once their mean has been rounded.
    """
    return spread <= FLOAT32_STEP * abs(magnitude)


def finite(value: Any) -> Any:
    """`value` as JSON can have it: None for each NaN and infinity in it, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decimals_for(scale: float | None) -> int:
    """Decimals (0..6) that show two significant digits of something as large as `scale`."""
    if scale is None or not math.isfinite(scale) or scale == 0:
        return 2
    return min(6, max(0, 1 - math.floor(math.log10(abs(scale)))))


def fixed(value: float | None, decimals: int, sign: bool = False) -> str:
    """With a set number of decimals, e.g. "−1,234.50"; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return ABSENT
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("+-")


def significant(value: float | None, digits: int = 3) -> str:
    """With a set number of significant digits, e.g. "0.0123", or "1.2×10⁻⁷" where that is long."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 <= power < 6:
        return fixed(value, max(0, digits - 1 - power))
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}×10{str(power).translate(_SUPERSCRIPTS)}".replace("-", "−")


def plain(value: float) -> str:
    """As short as it can be written, as people write a weight: "0.5", "−1"."""
    return f"{value:g}".replace("-", "−")


def score(value: float | None, decimals: int, unit: str = "") -> str:
    """E.g. "−38.2 kB"; a dash where there is no number."""
    return _with_unit(fixed(value, decimals), unit)


def mean_and_std(mean: float | None, std: float | None, decimals: int, unit: str = "") -> str:
    """E.g. "−38.2 ± 1.3 kB"; without its spread where that is not known."""
    text = fixed(mean, decimals)
    if is_number(mean) and is_number(std):
        text += f" ± {fixed(std, decimals)}"
    return _with_unit(text, unit)


def effect(size: float | None, ci95: Sequence[float] | None, undefined: str | None = None) -> str:
    """An effect size with its 95 % interval, e.g. "+2.31 [1.98, 2.70]".

    Args:
        size: None where it is not defined.
        ci95: None where it cannot be had.
        undefined: why one of them is None, said in its place.
    """
    why = f" ({undefined})" if undefined else ""
    if size is None:
        return f"not defined{why}"
    shown = fixed(size, 2, sign=True)
    if ci95 is None:
        return f"{shown}, without an interval{why}"
    return f"{shown} [{fixed(ci95[0], 2)}, {fixed(ci95[1], 2)}]"


def duration(seconds: float) -> str:
    """E.g. "48 s", "3 min 12 s", "5 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit and text != ABSENT else text
