"""From intervals and p values to one of four verdicts, and to the sentence that states it. Knows no data.

**Rule**, for the difference arm minus control, on a scale where more is better, and a margin fixed beforehand:

| the interval                                    | verdict        |
|-------------------------------------------------|----------------|
| lies above 0                                    | BETTER         |
| lies above -margin, not above 0                 | NON_INFERIOR   |
| lies below 0 and reaches down to -margin        | WORSE          |
| anything else, or no interval                   | INCONCLUSIVE   |

An interval that lies between -margin and 0 shows an arm that is worse by less than was fixed as mattering: non-inferior by definition
(Piaggio et al. 2012, CONSORT extension for non-inferiority, JAMA 308(24), figure 1), and marked `below_control`, so that nobody reads it
as equal.

**Several contrasts.** The primary contrast is tested alone at alpha. The others are secondary and corrected by Holm 1979 (Scandinavian
Journal of Statistics 6(2)). Each kind of claim (better, worse, non-inferior) is a family of one-sided tests at alpha / 2. So the chance
of any false "better" or "worse" among all secondary contrasts is at most alpha, and of any false "non-inferior" at most alpha / 2,
however the contrasts depend on each other. One shared family would not do: contrasts that are easily non-inferior would lower the bar for
"better". For a single contrast the corrected rule is the table above exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]  # statsmodels ships no type information

from flows.analysis.bootstrap import Estimate, Interval


class Verdict(StrEnum):
    """What a contrast shows about an arm against the control."""

    BETTER = "BETTER"
    NON_INFERIOR = "NON_INFERIOR"
    WORSE = "WORSE"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Reading:
    """A verdict. `below_control` marks an arm that is shown to score less than the control, though within the margin."""

    verdict: Verdict
    below_control: bool = False


@dataclass(frozen=True, slots=True)
class PValues:
    """One-sided p values of a contrast: that the difference is above 0, below 0, above -margin. Each rejects at alpha / 2."""

    better: float
    worse: float
    non_inferior: float

    @property
    def difference(self) -> float:
        """Two-sided p value of "no difference"."""
        return min(1.0, 2 * min(self.better, self.worse))


def p_values(estimate: Estimate, margin: float) -> PValues:
    """The three tests of one contrast."""
    return PValues(estimate.p_above(0.0), estimate.p_below(0.0), estimate.p_above(-margin))


def holm(family: Sequence[PValues | None]) -> tuple[PValues | None, ...]:
    """Holm-adjusted tests, in order, each kind of claim a family of its own. None (no estimate) stays None but counts in the size of the
    family."""
    better = _adjusted([1.0 if entry is None else entry.better for entry in family])
    worse = _adjusted([1.0 if entry is None else entry.worse for entry in family])
    within = _adjusted([1.0 if entry is None else entry.non_inferior for entry in family])
    rows = zip(family, better, worse, within, strict=True)
    return tuple(None if entry is None else PValues(b, w, n) for entry, b, w, n in rows)


def _adjusted(p_values: list[float]) -> list[float]:
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def read_interval(interval: Interval | None, margin: float) -> Reading:
    """The verdict of an interval, by the table of this module. Raises ValueError for a negative margin."""
    if margin < 0:
        raise ValueError(f"margin is {margin}: give the largest loss that does not matter, as a number of at least 0")
    if interval is None:
        return Reading(Verdict.INCONCLUSIVE)
    return _reading(better=interval.low > 0, worse=interval.high < 0, within=interval.low > -margin)


def read_p_values(adjusted: PValues | None, alpha: float) -> Reading:
    """The verdict of adjusted tests; with one contrast in the family it is that of its interval at 1 - alpha."""
    if adjusted is None:
        return Reading(Verdict.INCONCLUSIVE)
    level = alpha / 2
    return _reading(better=adjusted.better < level, worse=adjusted.worse < level, within=adjusted.non_inferior < level)


def _reading(*, better: bool, worse: bool, within: bool) -> Reading:
    if better:
        return Reading(Verdict.BETTER)
    if within:
        return Reading(Verdict.NON_INFERIOR, below_control=worse)
    return Reading(Verdict.WORSE if worse else Verdict.INCONCLUSIVE)


_PHRASES = {
    Verdict.BETTER: "is BETTER than",
    Verdict.NON_INFERIOR: "is NON-INFERIOR to",
    Verdict.WORSE: "is WORSE than",
    Verdict.INCONCLUSIVE: "is INCONCLUSIVE against",
}


def effect(difference: float | None, interval: Interval | None, margin: float) -> str:
    """`-0.02 [-0.07, 0.04]`: two decimals, or up to four where rounding would move an end of the interval across 0 or the margin."""
    if difference is None:
        return "no item answered by both"
    if interval is None:
        return f"{difference:.2f} [no interval]"
    decimals = next((d for d in (2, 3) if _sides(interval, margin) == _sides(_rounded(interval, d), margin)), 4)
    low, high = (f"{value:.{decimals}f}" for value in (interval.low, interval.high))
    return f"{_positive_zero(f'{difference:.{decimals}f}')} [{_positive_zero(low)}, {_positive_zero(high)}]"


def sentence(
    reading: Reading,
    *,
    arm: str,
    control: str,
    criterion: str,
    effect: str,
    scale: str,
    margin: float,
    items: int,
    seeds: int,
    remark: str = "",
) -> str:
    """The verdict in one sentence. `seeds` is 0 for an arm that was not trained; `remark` closes it, after a semicolon."""
    parts = [f"{effect} on {scale}", f"margin {margin:g}", _count(items, "item"), *([_count(seeds, "seed")] if seeds else [])]
    if reading.below_control:
        parts.append("within margin although below control")
    said = f"{arm} {_PHRASES[reading.verdict]} {control} on {criterion}: {', '.join(parts)}"
    return f"{said}; {remark}" if remark else said


def _sides(interval: Interval, margin: float) -> tuple[bool, bool, bool]:
    return interval.low > 0, interval.high < 0, interval.low > -margin


def _rounded(interval: Interval, decimals: int) -> Interval:
    return Interval(round(interval.low, decimals), round(interval.high, decimals), interval.level)


def _positive_zero(number: str) -> str:
    return number[1:] if float(number) == 0 and number.startswith("-") else number


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
