"""Numbers as a reader wants them: true minus signs, no more digits than the spread supports."""

import math

ABSENT = "—"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_number(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


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


def duration(seconds: float) -> str:
    """E.g. "48 s", "3 min 12 s", "5 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
