"""Means and differences as people would have scored them, from few labels and many judge scores. Knows arrays, no arms and no files.

**PPI++** (Angelopoulos, Duchi & Zrnic 2023, arXiv 2311.01453; the estimator of a mean and its power tuning). With Y the people's score
and f the judge's, n labelled items and N others,

    theta = mean_n(Y - power * f) + power * mean_N(f)
    Var   = Var(Y - power * f) / n + power^2 * Var(f) / N
    power = Cov(Y, f) / ((1 + n/N) * Var(f)),  clipped to [0, 1]

`power` is the paper's lambda. At 0 this is the mean of the labels alone, at 1 the judge's mean with its mean error taken off (Angelopoulos
et al. 2023, Science 382). Whatever the judge's bias, the target is the people's mean, as long as the labelled items are a random sample.

**Clusters.** Both means are ratios over clusters, so each cluster's part in theta is known: u_g = sum_g (Y - power * f - mean) / n and
r_g = sum_g (f - mean) / N. The variance is the sum of (u_g + power * r_g)^2 with the factors G/(G-1) of both samples (CR1, as in
`flows.analysis.clustered`). So a cluster of which some items are labelled and some not is counted with its covariance. `power` is what
makes this variance smallest; with one item a cluster and no cluster in both samples that is the formula above, with Var(f) in its
denominator taken in each sample where the paper pools them.

**Pairs.** For two arms, Y and f are the differences of an item's two scores: the difficulty of questions drops out (Miller 2024, arXiv
2411.00640).

**Chosen labels.** Labels that were not drawn evenly carry the chance with which their item was drawn; means over them are then weighted
by its inverse (Hajek 1971), and `rest` must hold every judged item (Zrnic & Candes 2024, arXiv 2403.03208, active inference).

**Few labels.** `power` comes from the same labels, which takes one degree of freedom (as a slope does in regression: Cochran 1977,
"Sampling Techniques", section 7.4) and the variance's factor; the interval is of Student's t with Satterthwaite's degrees of freedom.
With n labels the judge helps only when its correlation with people is above 1 / sqrt(n - 2) (Mani et al. 2025, arXiv 2505.20178).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.bootstrap import Interval, fewest_clusters
from flows.analysis.clustered import RatioMean, ratio_mean, satterthwaite
from flows.analysis.quantiles import Floats, Ints, t_quantile


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """What is known of each item, NaN where nothing is: the people's score, the judge's of the same answers, the judge's of the rest."""

    human: Floats
    judge: Floats
    rest: Floats
    """Items that no one labelled; every judged item where `weights` are not all alike."""
    weights: Floats
    """Inverse of the chance with which an item was drawn for labelling; all 1 where it was the same for all."""
    clusters: Ints
    cluster_count: int


@dataclass(frozen=True, slots=True)
class Corrected:
    """A mean in the people's measure. Numbers are None where the labels cannot give them; `power` is what the judge's scores count, from
    0 (not at all) to 1."""

    value: float | None
    standard_error: float | None
    dof: float | None
    interval: Interval | None
    power: float | None
    labelled: int
    rest: int
    clusters: int
    """Those with a label."""


def prediction_powered(
    known: Labelled, alpha: float, *, power: float | None = None, seeds: Sequence[tuple[float, float]] = ()
) -> Corrected:
    """The corrected mean with its two-sided interval at 1 - alpha. `power` None: tuned.

    `seeds` holds the variance that training seeds add to the mean, with its degrees of freedom, one entry for each arm that has several.
    """
    both = ~np.isnan(known.human) & ~np.isnan(known.judge)

    def mean(values: Floats, weights: Floats) -> RatioMean | None:
        return ratio_mean(values, weights, known.clusters, known.cluster_count)

    human, judge = (mean(np.where(both, scores, np.nan), known.weights) for scores in (known.human, known.judge))
    rest = mean(known.rest, np.ones_like(known.rest))
    labelled, others = int(both.sum()), int((~np.isnan(known.rest)).sum())
    if human is None or judge is None:
        return Corrected(None, None, None, None, None, labelled, others, 0)
    usable = rest is not None and rest.clusters >= 2 and human.clusters >= 2
    chosen = 0.0 if rest is None or not usable else _tuned(human, judge, rest) if power is None else power
    value = human.value - chosen * judge.value + (chosen * rest.value if rest is not None and chosen else 0.0)
    if human.clusters < 2:
        return Corrected(value, None, None, None, chosen, labelled, others, human.clusters)
    # A tuned power at an end of [0, 1] took nothing from the labels.
    fitted = power is None and 0 < chosen < 1
    error, dof = _error(human, judge, rest if chosen else None, chosen, fitted=fitted)
    total = error**2 + sum(variance for variance, _ in seeds)
    freedom = satterthwaite(((error**2, dof), *seeds))
    interval = None
    if human.clusters >= fewest_clusters(alpha):
        half = t_quantile(1 - alpha / 2, freedom) * math.sqrt(total)
        interval = Interval(value - half, value + half, 1 - alpha)
    return Corrected(value, math.sqrt(total), freedom, interval, chosen, labelled, others, human.clusters)


def _tuned(human: RatioMean, judge: RatioMean, rest: RatioMean) -> float:
    against = judge.parts - rest.parts
    spread = float(against @ against)
    return float(np.clip(human.parts @ against / spread, 0.0, 1.0)) if spread > 0 else 0.0


def _error(human: RatioMean, judge: RatioMean, rest: RatioMean | None, power: float, *, fitted: bool) -> tuple[float, float]:
    """Standard error and degrees of freedom of the clustered part."""
    labels = human.parts - power * judge.parts
    dof = human.clusters - 1.0
    if fitted and human.clusters > 2:
        labels, dof = labels * math.sqrt(dof / (dof - 1)), dof - 1
    if rest is None:
        return math.sqrt(float(labels @ labels)), dof
    others = power * rest.parts
    together = labels + others
    distinct = float(np.maximum(human.present, rest.present).sum())
    dof = min(satterthwaite(((float(labels @ labels), dof), (float(others @ others), rest.clusters - 1))), distinct - 1)
    return math.sqrt(float(together @ together)), dof
