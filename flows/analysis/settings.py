"""What a trial fixes before its analysis: control, primary contrast, margin, level. Knows no data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Primary:
    """The one contrast named beforehand: this arm against the control, on this criterion."""

    arm: str
    criterion: str


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """`margin` is the largest loss that does not matter, in points of the scale; `alpha` the two-sided level; `bootstrap` the number of
    draws."""

    control: str
    primary: Primary
    margin: float
    alpha: float = 0.05
    bootstrap: int = 10_000
    seed: int = 0
    power: float = 0.8
    scale: str = "1-5"
