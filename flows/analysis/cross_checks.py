"""A paired difference by other methods than the trial's own, to see that its verdict does not hang on one. Knows statistics, no verdicts.

None of these decides: docs/adr/0003-interval.md says why the trial's interval is another. All look at clusters alone, so with several
training seeds they hold for the adapters that were trained, and are narrower than the trial.

- BCa interval: Efron 1987, Journal of the American Statistical Association 82(397), over clusters; scipy's.
- Randomisation test: Fisher 1935, "The Design of Experiments", section 21. If the arms were alike, every cluster's difference might as
  well have had the other sign. Whole clusters change sign; exact where there are no more signs than draws; scipy's.
- TOST: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6). Two one-sided tests, that the difference is above -margin
  and below margin; the larger p value counts. Below alpha / 2 exactly when the trial's interval lies within the margin on both sides.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information

from flows.analysis.bootstrap import Estimate, Interval, fewest_clusters
from flows.analysis.paired import Statistic
from flows.analysis.quantiles import Floats

_CELLS = 2_000_000
"""Numbers resampled at once."""


@dataclass(frozen=True, slots=True)
class CrossChecks:
    """None where the data cannot give it."""

    bca: Interval | None
    p_randomisation: float | None
    """Two-sided, of "the arms are alike"."""
    p_equivalent: float | None
    """Of "they differ by the margin or more", to be held against alpha / 2."""


def cross_checks(statistic: Statistic, estimate: Estimate | None, *, margin: float, alpha: float, draws: int, seed: int) -> CrossChecks:
    """All of them for one difference."""
    used = statistic.counts > 0
    sums, counts = statistic.sums[used], statistic.counts[used]
    return CrossChecks(
        bca=bca_interval(sums, counts, alpha, draws, seed),
        p_randomisation=randomisation_p(sums, draws, seed),
        p_equivalent=None if estimate is None else max(estimate.p_above(-margin), estimate.p_below(margin)),
    )


def bca_interval(sums: Floats, counts: Floats, alpha: float, draws: int, seed: int) -> Interval | None:
    """Of the mean sum(sums) / sum(counts) over clusters; None with too few clusters, or when all have one mean."""
    clusters = len(sums)
    if clusters < fewest_clusters(alpha) or np.ptp(sums / counts) == 0:
        return None

    def mean(some: Floats, many: Floats, axis: int = -1) -> Floats:
        return np.asarray(some.sum(axis=axis) / many.sum(axis=axis))

    with warnings.catch_warnings():
        # scipy warns, and gives NaN, where a resampled distribution has no spread on one side.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (sums, counts),
            mean,
            paired=True,
            vectorized=True,
            n_resamples=draws,
            batch=max(1, _CELLS // clusters),
            confidence_level=1 - alpha,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return None if np.isnan([found.low, found.high]).any() else Interval(float(found.low), float(found.high), 1 - alpha)


def randomisation_p(sums: Floats, draws: int, seed: int) -> float | None:
    """Two-sided p value of the cluster totals `sums` under changed signs; None with fewer than two clusters."""
    if len(sums) < 2:
        return None

    def total(kept: Floats, changed: Floats, axis: int = -1) -> Floats:
        return np.asarray((kept - changed).sum(axis=axis))

    found = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        batch=max(1, _CELLS // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
