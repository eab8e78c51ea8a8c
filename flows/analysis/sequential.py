"""Boundaries for looks at growing data: how much of alpha each look may spend, and the z that it must pass. Knows no data and no verdict.

Alpha spending: Lan & DeMets 1983, Biometrika 70(3). A look at information fraction t (items so far over items at most, 0 < t <= 1) may
have spent alpha(t) in all; neither the number of looks nor their times need be fixed beforehand, only the function and the most items.
Two-sided boundaries are symmetric and each side spends alpha / 2, as in Reboussin, DeMets, Kim & Lan 2000, Controlled Clinical Trials
21(3), whose numbers these are.

The crossing probability is integrated numerically, look by look: Armitage, McPherson & Rowe 1969, Journal of the Royal Statistical
Society A 132(2). Under no difference the score z * sqrt(t) is Brownian motion; its density among trials that have not stopped goes from
look to look through a Gaussian kernel (Gauss-Legendre quadrature).

At a look take the trial's interval at the look's own alpha: `Estimate.interval(look.alpha)`. This holds for every claim that is read from
the interval (better, worse, non-inferior), each at most alpha / 2 over all looks together. Two cautions: the interval's t quantile is
exact for normal looks only in large samples, and training seeds must not change between looks, since their part does not shrink.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize  # type: ignore[import-untyped]  # scipy ships no type information

from flows.analysis.quantiles import Floats, normal_cdf, normal_cdfs, normal_quantile

Spending = Literal["obrien-fleming", "pocock"]
"""`obrien-fleming` spends almost nothing early and leaves the last look nearly as it was; `pocock` spends evenly and may stop sooner."""

FARTHEST = 8.0
"""No boundary is farther out: a look that may spend less than this z's probability of 1e-15 cannot stop the trial."""

_NODES = 12
"""Quadrature points to each standard deviation of a look's increment; eight places of the boundary do not change with more."""
_MOST_NODES = 1024


@dataclass(frozen=True, slots=True)
class Look:
    """One look. It stops the trial when |z| is above `boundary`, that is when the interval of coverage 1 - `alpha` decides."""

    fraction: float
    boundary: float
    alpha: float
    """Two-sided nominal level of this look alone."""
    spent: float
    """Of the trial's alpha, by this look and all before it."""


def spent(fraction: float, alpha: float, spending: Spending) -> float:
    """Alpha that may be spent by `fraction`, two-sided (twice that of each side); all of it from 1 on.

    For each side with a = alpha / 2: O'Brien-Fleming type 2 - 2 Phi(z_{1-a/2} / sqrt(t)), Pocock type a ln(1 + (e - 1) t) (Lan & DeMets
    1983, alpha_1* and alpha_2*).
    """
    fraction, side = min(fraction, 1.0), alpha / 2
    if spending == "pocock":
        return alpha * math.log(1 + (math.e - 1) * fraction)
    return 2 * 2 * normal_cdf(normal_quantile(side / 2) / math.sqrt(fraction))


def looks(fractions: Sequence[float], alpha: float = 0.05, spending: Spending = "obrien-fleming") -> tuple[Look, ...]:
    """Boundaries of looks at these information fractions. A later look never changes those before it, so they may be added one by one.

    Raises ValueError for fractions that do not rise from above 0 to at most 1, or an alpha outside 0 to 1.
    """
    if not fractions or list(fractions) != sorted(set(fractions)) or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise ValueError(f"looks at {list(fractions)}: give rising fractions of the most items, each above 0 and at most 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: give a level between 0 and 1, as 0.05")
    found: list[Look] = []
    state, before, already = _START, 0.0, 0.0
    for fraction in fractions:
        allowed = spent(fraction, alpha, spending)
        step = fraction - before
        boundary = _boundary(state, step, fraction, (allowed - already) / 2)
        found.append(Look(fraction, boundary, 2 * normal_cdf(-boundary), allowed))
        state, before, already = _continued(state, step, boundary * math.sqrt(fraction)), fraction, allowed
    return tuple(found)


def crossing_probability(fractions: Sequence[float], boundaries: Sequence[float], drift: float = 0.0) -> float:
    """Probability that |z| passes a boundary at some look. `drift` is the mean of z at fraction 1: 0 gives the error rate, else the power.

    Drift is the true difference over its standard error with all items.
    """
    state, before, total = _START, 0.0, 0.0
    for fraction, boundary in zip(fractions, boundaries, strict=True):
        step, edge = fraction - before, boundary * math.sqrt(fraction)
        total += _beyond(state, step, edge, drift) + _below(state, step, -edge, drift)
        state, before = _continued(state, step, edge, drift), fraction
    return total


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """The score among trials that have not stopped: quadrature points and the probability at each."""

    points: Floats
    masses: Floats


_START = _State(np.zeros(1), np.ones(1))


def _boundary(state: _State, step: float, fraction: float, each_side: float) -> float:
    def excess(z: float) -> float:
        return _beyond(state, step, z * math.sqrt(fraction)) - each_side

    if excess(FARTHEST) >= 0:
        return FARTHEST
    return float(optimize.brentq(excess, 0.0, FARTHEST, xtol=1e-10))


def _beyond(state: _State, step: float, edge: float, drift: float = 0.0) -> float:
    return float(state.masses @ normal_cdfs((state.points + drift * step - edge) / math.sqrt(step)))


def _below(state: _State, step: float, edge: float, drift: float = 0.0) -> float:
    return float(state.masses @ normal_cdfs((edge - state.points - drift * step) / math.sqrt(step)))


def _continued(state: _State, step: float, edge: float, drift: float = 0.0) -> _State:
    scale = math.sqrt(step)
    nodes, weights = _quadrature(min(_MOST_NODES, 64 * math.ceil(_NODES * edge / scale / 64)))
    points = edge * nodes
    offsets = (points[:, None] - state.points[None, :] - drift * step) / scale
    density = np.exp(-(offsets**2) / 2) @ state.masses / (scale * math.sqrt(2 * math.pi))
    return _State(points, edge * weights * density)


@lru_cache(maxsize=8)
def _quadrature(count: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes, weights
