"""Cluster bootstrap of means: resampled draws, intervals and the p values that agree with them. Knows arrays only, no arms and no verdicts.

**Draws.** Whole clusters are drawn with replacement, as many as there are (Davison & Hinkley 1997, "Bootstrap Methods and their
Application"; Cameron, Gelbach & Miller 2008, Review of Economics and Statistics 90(3)). A mean is a ratio, sum of sums over sum of
counts, so uneven clusters need no care. Training seeds are a second layer, but two to five seeds hold too few values to be resampled (K
seeds drawn K times understate the variance by (K-1)/K, and K = 2 gives three values): each draw instead adds a normal deviate with the
estimated between-seed variance of the mean.

**Interval.** The expanded percentile interval of Hesterberg 2015, The American Statistician 69(4): quantiles of the draws, taken not at
the normal but at a t quantile, and stretched by the factor that the bootstrap's variance lacks (sqrt(G/(G-1)) when there are no seeds).
Chosen by measurement: over 1,000 simulated data sets each of 15, 30, 60 and 150 uneven clusters with normal, skewed and mostly tied
differences, its 95 % intervals covered between 93.3 and 96.3 %; plain percentile 90.7 to 96.2, BCa 89.2 to 94.6, studentised 89.9 to 95.3
(it breaks on tied differences, whose resamples often have no variance). Beyond the outermost draws the distribution is continued as a
normal of the same standard deviation, so strict levels do not stop at the last draw.

With seeds, simulated coverage was 93 to 98 % for three or five seeds, save 90 % for three very unlike seeds over 20 clusters; for two seeds
whose spread outweighs all else it was 88 to 90 %, as two values hardly measure a spread. Contrasts with two seeds say so in a note.

**p values** invert the interval: P(above null) < alpha/2 exactly when the interval at alpha lies above the null.

**Few clusters.** No test that assumes symmetry alone can reach a two-sided p below 2^(1-G) with G clusters (all signs alike). Nothing
here claims more than that: p has this floor, and at a level below it there is no interval. At 5 % this asks for six clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flows.analysis.quantiles import Floats, normal_scores, t_cdf, t_quantile

_CELLS = 2_000_000
"""Resampled cluster indices held at once: 16 MB, whatever the number of clusters and draws."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval; `level` is its nominal coverage, 0.95 for example."""

    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A mean with its bootstrap distribution. `draws` are sorted; `stretch` is standard error over the draws' expected standard
    deviation."""

    mean: float
    standard_error: float
    dof: float
    clusters: int
    draws: Floats
    stretch: float

    def interval(self, alpha: float) -> Interval | None:
        """The interval of nominal coverage 1 - alpha; None when there are too few clusters for that level."""
        if self.clusters < fewest_clusters(alpha):
            return None
        z = self.stretch * t_quantile(1 - alpha / 2, self.dof)
        scores = normal_scores(len(self.draws))
        return Interval(self._quantile(-z, scores), self._quantile(z, scores), 1 - alpha)

    def p_above(self, null: float) -> float:
        """One-sided p value of "the true mean is at most `null`": small when the mean is above it."""
        return max(t_cdf(self._score(self.draws, null) / self.stretch, self.dof), 2.0**-self.clusters)

    def p_below(self, null: float) -> float:
        """One-sided p value of "the true mean is at least `null`": small when the mean is below it."""
        return max(t_cdf(self._score(-self.draws[::-1], -null) / self.stretch, self.dof), 2.0**-self.clusters)

    def p_two_sided(self, null: float = 0.0) -> float:
        """Two-sided p value of "the true mean is `null`": twice the smaller one-sided one."""
        return min(1.0, 2 * min(self.p_above(null), self.p_below(null)))

    def _quantile(self, z: float, scores: Floats) -> float:
        beyond = z - float(np.clip(z, scores[0], scores[-1]))
        return float(np.interp(z, scores, self.draws)) + beyond * float(self.draws.std())

    def _score(self, draws: Floats, value: float) -> float:
        """The largest z whose quantile is `value`: of tied draws the last, which is the cautious one."""
        spread = float(draws.std())
        scores = normal_scores(len(draws))
        right = int(np.searchsorted(draws, value, side="right"))
        if right == 0:
            return float(scores[0] + (value - draws[0]) / spread) if spread > 0 else -np.inf
        if right == len(draws):
            return float(scores[-1] + (value - draws[-1]) / spread) if spread > 0 else np.inf
        share = (value - draws[right - 1]) / (draws[right] - draws[right - 1])
        return float(scores[right - 1] + share * (scores[right] - scores[right - 1]))


def fewest_clusters(alpha: float) -> int:
    """The fewest clusters for which there is an interval of coverage 1 - alpha: the first G, at least 2, with 2^(1-G) <= alpha."""
    return max(2, 1 + math.ceil(-math.log2(alpha)))


def resampled_means(sums: Floats, counts: Floats, draws: int, seed: int) -> Floats:
    """Means of `draws` cluster resamples, (statistic, draw), from cluster totals (statistic, cluster). All statistics share the resamples.

    A statistic may lack some clusters (count 0): its mean is then a domain mean, whose resamples vary in size as they would in truth. A
    resample that misses all of its clusters is NaN. The same seed and clusters give the same resamples, whatever other statistics stand
    beside.
    """
    statistics, clusters = sums.shape
    rng = np.random.default_rng(seed)
    means = np.empty((statistics, draws))
    totals = np.concatenate([sums, counts]).T
    rows = max(1, _CELLS // clusters)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        drawn = rng.integers(0, clusters, (size, clusters)) + np.arange(size)[:, None] * clusters
        weights = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters).astype(np.float64)
        resampled = weights @ totals
        with np.errstate(invalid="ignore"):
            means[:, start : start + size] = (resampled[:, :statistics] / resampled[:, statistics:]).T
    return means


def seed_shifts(variance: float, draws: int, seed: int) -> Floats:
    """What training seeds add to each draw of a mean: normal deviates of the given variance, from a stream apart from the clusters'."""
    return np.random.default_rng([seed, 1]).normal(0.0, np.sqrt(variance), draws)
