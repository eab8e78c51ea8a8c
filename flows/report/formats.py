"""Numbers as people read them. Missing is a dash, never 0."""

from __future__ import annotations

import math

from flows.analysis.bootstrap import Interval
from flows.analysis.contrasts import Contrast
from flows.analysis.verdict import effect

MISSING = "\u2014"
_MINUS = "\u2212"


def number(value: float | None, decimals: int = 2) -> str:
    """`-0.25` with a true minus sign."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", _MINUS)


def signed(value: float | None, decimals: int = 2) -> str:
    """`+0.25`, or with a true minus sign; 0 has none."""
    text = number(value, decimals)
    return f"+{text}" if value is not None and value > 0 and any(digit in text for digit in "123456789") else text


def interval(value: Interval | None, decimals: int = 2) -> str:
    """`[-0.25, 0.10]`."""
    return MISSING if value is None else f"[{number(value.low, decimals)}, {number(value.high, decimals)}]"


def effect_text(contrast: Contrast, margin: float) -> str:
    """Difference and interval, with as many decimals as keep the ends on their side of 0 and of the margin."""
    return effect(contrast.difference, contrast.interval, margin).replace("-", _MINUS)


def percent(value: float | None, decimals: int = 0) -> str:
    """`25 %` of a share between 0 and 1."""
    return MISSING if value is None else f"{number(100 * value, decimals)}\u202f%"


def whole(value: float | None) -> str:
    """`1,234`."""
    return number(value, 0)


def plural(number: int, noun: str) -> str:
    """`1 question`, `1,234 questions`."""
    return f"{whole(number)} {noun}" if number == 1 else f"{whole(number)} {noun}s"


def duration(seconds: float | None) -> str:
    """`3.2 s`, `41 min`, `2 h 5 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def money(usd: float | None, unpriced: int = 0) -> str:
    """US dollars; a lower bound where `unpriced` calls have no price, a dash where none has one, which is not the same as 0."""
    if usd is None:
        return MISSING
    text = f"{usd:,.2f} USD" if usd == 0 or usd >= 0.01 else f"{usd:.2g} USD"
    return f"at least {text}" if unpriced else text


def probability(value: float | None) -> str:
    """A p value: three decimals, or `< 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def significant(value: float | None) -> str:
    """Three significant digits, for values of any size."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3g}".replace("-", _MINUS)


def model(identity: str) -> str:
    """A model named as `name@fingerprint`, in short: of a folder its last part, of the fingerprint the beginning."""
    name, _, fingerprint = identity.rpartition("@")
    short = name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
    return f"{short}@{fingerprint[:8]}" if short else identity


def level(alpha: float) -> str:
    """Coverage of the intervals, as `95 %`."""
    return f"{100 * (1 - alpha):g}\u202f%"
