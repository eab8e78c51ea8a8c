"""How many items would decide, and how small a difference the present ones could show. Knows variances, not how they came about.

Normal-theory planning for a difference with standard error se: Julious 2004, Statistics in Medicine 23(12) (superiority and non-
inferiority); smallest detectable difference (t_{1-alpha/2} + t_{power}) * se: Bloom 1995, Evaluation Review 19(5). Clusters of the same
make-up are added, so the clustered part of the variance falls as 1 / clusters; what training seeds add does not fall with items.

The plan takes the observed difference for the true one. That is a guess from the data that were inconclusive (Hoenig & Heisey 2001, The
American Statistician 55(1)), so it is a size to plan with, not a promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flows.analysis.bootstrap import fewest_clusters
from flows.analysis.clustered import satterthwaite
from flows.analysis.paired import Statistic
from flows.analysis.quantiles import normal_cdf, t_quantile

MOST_ITEMS = 100_000
"""A plan beyond this many items is called unrealistic, and no number is given."""


@dataclass(frozen=True, slots=True)
class Need:
    """What would decide an inconclusive contrast with probability `target`. `items` and `clusters` are totals, not additions; None when
    no realistic number decides."""

    items: int | None
    clusters: int | None
    target: float
    reason: str
    """One sentence: the number and what it assumes, or why there is none."""


def decided_probability(difference: float, standard_error: float, dof: float, margin: float, alpha: float) -> float:
    """Probability that the verdict is not INCONCLUSIVE when `difference` is true: 1 - P(-margin >= low and high >= 0) for low, high =
    estimate -+ t * se.

    An interval narrower than the margin always decides. A standard error of 0 decides unless the difference itself sits on a boundary.
    """
    if standard_error == 0:
        return 0.0 if -margin == difference == 0 else 1.0
    t = t_quantile(1 - alpha / 2, dof)
    if margin > 2 * t * standard_error:
        return 1.0
    return 1 - normal_cdf(t - (margin + difference) / standard_error) + normal_cdf(-t - difference / standard_error)


def needed(statistic: Statistic, margin: float, alpha: float, target: float = 0.8) -> Need:
    """Items and clusters that decide `statistic` with probability `target`, at the observed difference and variance."""
    if statistic.mean is None or not statistic.variances:
        return Need(None, None, target, "fewer than two clusters hold paired items, so nothing can be planned from them")
    if statistic.variances[0] == 0:
        return Need(
            None, None, target, f"all {statistic.items} differences are equal, so there is no variance to plan with; use more clusters"
        )
    limit = max(statistic.clusters + 1, int(MOST_ITEMS * statistic.clusters / statistic.items))
    if _decided(statistic, limit, margin, alpha) < target:
        return Need(None, None, target, _why_never(statistic, margin, alpha, target))
    low, high = statistic.clusters + 1, limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _decided(statistic, middle, margin, alpha) >= target else (middle + 1, high)
    items = math.ceil(low * statistic.items / statistic.clusters)
    clusters = "" if low == items else f" in {low} clusters"
    return Need(
        items,
        low,
        target,
        f"about {items} items{clusters} would decide with {target:.0%} probability if the difference stays {statistic.mean:.2f}",
    )


def detectable(statistic: Statistic, alpha: float, target: float = 0.8) -> float | None:
    """The smallest true difference that the present items would show as not 0 with probability `target`; None without a standard error."""
    if statistic.standard_error is None:
        return None
    dof = _dof(statistic.variances, statistic.dofs)
    return (t_quantile(1 - alpha / 2, dof) + t_quantile(target, dof)) * statistic.standard_error


def _decided(statistic: Statistic, clusters: int, margin: float, alpha: float) -> float:
    if clusters < fewest_clusters(alpha):
        return 0.0
    variances = (statistic.variances[0] * statistic.clusters / clusters, *statistic.variances[1:])
    dof = _dof(variances, (clusters - 1, *statistic.dofs[1:]))
    return decided_probability(statistic.mean or 0.0, math.sqrt(sum(variances)), dof, margin, alpha)


def _dof(variances: tuple[float, ...], dofs: tuple[float, ...]) -> float:
    return satterthwaite(tuple(zip(variances, dofs, strict=True)))


def _why_never(statistic: Statistic, margin: float, alpha: float, target: float) -> str:
    without_seeds = math.sqrt(statistic.variances[0] * statistic.items / MOST_ITEMS)
    if decided_probability(statistic.mean or 0.0, without_seeds, statistic.dofs[0], margin, alpha) >= target:
        return "the spread between training seeds is too wide for any number of items to decide; train more seeds"
    return f"the difference sits so near a boundary that {MOST_ITEMS} items would not decide; no realistic number does"
