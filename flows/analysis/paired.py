"""Means and paired differences of arms over items, as statistics with a variance in layers. Knows score arrays, no criteria and no
verdicts.

Pairing: only items that both arms answered count, and each is compared with itself, so the difficulty of questions drops out of the
variance (Miller 2024, arXiv 2411.00640).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.bootstrap import Estimate, resampled_means, seed_shifts
from flows.analysis.clustered import between_seed_variance, cluster_totals, clustered_variance, satterthwaite
from flows.analysis.quantiles import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Statistic:
    """A mean over items, ready to be resampled. `values` holds one number an item, NaN where missing; `sums` and `counts` are by cluster.

    `variances` and `dofs` come layer by layer: clusters first, then one entry for each arm that has several seeds. Empty when there are
    fewer than two clusters.
    """

    values: Floats
    sums: Floats
    counts: Floats
    mean: float | None
    items: int
    dropped: int
    """Items that one arm answered and the other did not."""
    clusters: int
    variances: tuple[float, ...]
    dofs: tuple[float, ...]
    seeds: tuple[int, ...]
    """Training seeds of each arm in the statistic; 1 where the arm has none."""
    seed_variances: tuple[float | None, ...]
    """Between-seed variance of each arm in the statistic; None with one seed."""

    @property
    def standard_error(self) -> float | None:
        """Of the mean, all layers together; None when there are fewer than two clusters."""
        return float(np.sqrt(sum(self.variances))) if self.variances else None


def mean_statistic(values: Floats, clusters: Ints, cluster_count: int) -> Statistic:
    """The mean score of one arm from `values` (seed, item), NaN for missing."""
    return _statistic((values,), over_seeds(values), clusters, cluster_count, dropped=0)


def paired_statistic(arm: Floats, control: Floats, clusters: Ints, cluster_count: int) -> Statistic:
    """The mean of arm minus control per item, from (seed, item) arrays over the same items. The two arms' seeds are independent of each
    other."""
    difference = over_seeds(arm) - over_seeds(control)
    paired = ~np.isnan(difference)
    either = ~np.isnan(arm).all(axis=0) | ~np.isnan(control).all(axis=0)
    sides = (np.where(paired, arm, np.nan), np.where(paired, control, np.nan))
    return _statistic(sides, difference, clusters, cluster_count, dropped=int((either & ~paired).sum()))


def over_seeds(values: Floats) -> Floats:
    """One score an item: the mean over the seeds that have one, NaN where none has."""
    present = ~np.isnan(values)
    count = present.sum(axis=0)
    total = np.where(present, values, 0.0).sum(axis=0)
    means: Floats = np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)
    return means


def _statistic(sides: tuple[Floats, ...], values: Floats, clusters: Ints, cluster_count: int, dropped: int) -> Statistic:
    sums, counts = cluster_totals(values, clusters, cluster_count)
    items, used = int(counts.sum()), int(np.count_nonzero(counts))
    variance = clustered_variance(sums, counts)
    seeds = tuple(max(1, int((~np.isnan(side).all(axis=1)).sum())) for side in sides)
    spreads = tuple(between_seed_variance(side, clusters, cluster_count) for side in sides)
    variances: list[float] = []
    dofs: list[float] = []
    if variance is not None:
        variances, dofs = [variance], [used - 1]
        for spread, count in zip(spreads, seeds, strict=True):
            if spread is not None:
                variances.append(spread / count)
                dofs.append(count - 1)
    mean = float(sums.sum() / items) if items else None
    return Statistic(values, sums, counts, mean, items, dropped, used, tuple(variances), tuple(dofs), seeds, spreads)


def estimates(statistics: Sequence[Statistic], draws: int, seed: int) -> tuple[Estimate | None, ...]:
    """The bootstrap distribution of each statistic, in order, all from one set of cluster resamples. None for one with fewer than two
    clusters."""
    usable = [s for s in statistics if s.variances]
    if not usable:
        return (None,) * len(statistics)
    # Sums are taken about each statistic's own mean: a constant in all values then shifts the draws by exactly that constant.
    sums = np.stack([s.sums - s.sums.sum() / s.counts.sum() * s.counts for s in usable])
    means = resampled_means(sums, np.stack([s.counts for s in usable]), draws, seed)
    made = iter([_estimate(s, row, draws, seed) for s, row in zip(usable, means, strict=True)])
    return tuple(next(made) if s.variances else None for s in statistics)


def _estimate(statistic: Statistic, row: Floats, draws: int, seed: int) -> Estimate:
    by_cluster, by_seed = statistic.variances[0], sum(statistic.variances[1:])
    mean, clusters = float(statistic.sums.sum() / statistic.counts.sum()), statistic.clusters
    total = by_cluster + by_seed
    shifted = row + mean + seed_shifts(by_seed, draws, seed)
    expected = by_cluster * (clusters - 1) / clusters + by_seed
    stretch = float(np.sqrt(total / expected)) if expected > 0 else 1.0
    dof = satterthwaite(tuple(zip(statistic.variances, statistic.dofs, strict=True)))
    return Estimate(mean, float(np.sqrt(total)), dof, clusters, np.sort(shifted[~np.isnan(shifted)]), stretch)
