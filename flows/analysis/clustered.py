"""Variance of a mean whose items come in clusters and whose arms come in training seeds. Knows arrays only.

Sources: cluster-robust variance CR1: Liang & Zeger 1986, Biometrika 73(1), with the factor G/(G-1); for language-model evaluations:
Miller 2024, arXiv 2411.00640. Between-seed variance: the moment (ANOVA) estimator of a two-way random layout, Searle, Casella & McCulloch
1992, "Variance Components". Degrees of freedom: Satterthwaite 1946, Biometrics Bulletin 2(6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flows.analysis.quantiles import Floats, Ints


def cluster_totals(values: Floats, clusters: Ints, cluster_count: int) -> tuple[Floats, Floats]:
    """Sum and number of the values of each cluster; NaN values are left out. `clusters` holds each item's cluster, counted from 0."""
    present = ~np.isnan(values)
    sums = np.bincount(clusters[present], weights=values[present], minlength=cluster_count)
    counts = np.bincount(clusters[present], minlength=cluster_count)
    return sums.astype(np.float64), counts.astype(np.float64)


def clustered_variance(sums: Floats, counts: Floats) -> float | None:
    """Variance of the mean sum(sums) / sum(counts): G/(G-1) * sum_g r_g^2 / n^2, with r_g = sums_g - mean * counts_g.

    G counts the clusters that hold a value. None with fewer than two of them: one cluster says nothing about the next.
    Equals statsmodels' `OLS(y, 1).fit(cov_type="cluster")`, whose factor is G/(G-1) * (n-1)/(n-k) with k = 1.
    """
    clusters = int(np.count_nonzero(counts))
    if clusters < 2:
        return None
    total = counts.sum()
    residuals = sums - sums.sum() / total * counts
    return float(clusters / (clusters - 1) * (residuals @ residuals) / total**2)


@dataclass(frozen=True, slots=True, eq=False)
class RatioMean:
    """A weighted mean and each cluster's part in its error, so that errors of several means of the same clusters can be added up.

    The sum of squares of `parts` is `clustered_variance` where all weights are alike; with one cluster it says nothing.
    """

    value: float
    parts: Floats
    present: Floats
    """1 for a cluster that holds a value, else 0."""
    clusters: int


def ratio_mean(values: Floats, weights: Floats, clusters: Ints, cluster_count: int) -> RatioMean | None:
    """The mean of the values that are not NaN, by their weights; None when there are none."""
    found = ~np.isnan(values)
    if not found.any():
        return None
    index, weighed = clusters[found], weights[found]
    counts = np.bincount(index, weights=weighed, minlength=cluster_count)
    sums = np.bincount(index, weights=weighed * values[found], minlength=cluster_count)
    mean, present = float(sums.sum() / counts.sum()), int(np.count_nonzero(counts))
    factor = present / (present - 1) if present > 1 else 1.0
    return RatioMean(mean, (sums - mean * counts) / counts.sum() * math.sqrt(factor), (counts > 0).astype(np.float64), present)


def between_seed_variance(values: Floats, clusters: Ints, cluster_count: int) -> float | None:
    """Variance of the true mean from one training seed to the next, from `values` (seed, item) with NaN for missing.

    The means of the seeds vary by more than the seeds' own effect: each also carries the noise of its answers and judgements. That noise is
    estimated from what is left after item and seed means are taken out (clustered), and subtracted; a negative rest is 0.
    None with fewer than two seeds: then the spread between seeds is unknown, not 0.
    """
    values = values[~np.isnan(values).all(axis=1)]
    seeds = values.shape[0]
    if seeds < 2:
        return None
    answered = ~np.isnan(values).all(axis=0)
    values, clusters = values[:, answered], clusters[answered]
    centred = values - np.nanmean(values, axis=0)
    means = np.nanmean(centred, axis=1)
    noise = 0.0
    for row, mean in zip(centred, means, strict=True):
        noise += clustered_variance(*cluster_totals(row - mean, clusters, cluster_count)) or 0.0
    return max(0.0, float(means.var(ddof=1) - noise / (seeds - 1)))


def satterthwaite(components: tuple[tuple[float, float], ...]) -> float:
    """Degrees of freedom of a sum of independent variance estimates, from their (variance, degrees of freedom): V^2 / sum(V_i^2 / dof_i).

    When all components are 0, those of the first, which is then the only one that could have varied.
    """
    largest = max(variance for variance, _ in components)
    if largest == 0:
        return components[0][1]
    # Divided by the largest first, so that squares of tiny variances do not vanish.
    shares = [(variance / largest, dof) for variance, dof in components]
    return float(sum(share for share, _ in shares) ** 2 / sum(share**2 / dof for share, dof in shares))
