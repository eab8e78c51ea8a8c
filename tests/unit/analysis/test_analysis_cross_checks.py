"""The same difference by other methods: against full enumeration, the published formula and statsmodels."""

from itertools import product

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information
from statsmodels.stats.weightstats import DescrStatsW  # type: ignore[import-untyped]  # statsmodels ships no type information

from flows.analysis.cross_checks import bca_interval, cross_checks, randomisation_p
from flows.analysis.paired import estimates, mean_statistic


def test_few_clusters_are_permuted_in_full() -> None:
    sums = np.array([0.9, -0.2, 0.4, 1.1, 0.3, -0.1, 0.8, 0.5])
    totals = [float(np.dot(signs, sums)) for signs in product((-1, 1), repeat=8)]
    as_far = np.mean([abs(total) >= sums.sum() - 1e-12 for total in totals])
    assert randomisation_p(sums, 10_000, 0) == pytest.approx(float(as_far))


def test_the_randomisation_test_rejects_true_nulls_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    rejected = 0
    for trial in range(400):
        p = randomisation_p(rng.standard_t(3, 25), 400, trial)
        assert p is not None
        rejected += p < 0.05
    assert stats.binomtest(rejected, 400, 0.05).pvalue > 0.001


def test_bca_of_uneven_clusters_is_the_published_formula() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 6, 30).astype(float)
    sums = rng.exponential(1.0, 30) * counts
    found = bca_interval(sums, counts, 0.05, 20_000, 0)
    assert found is not None
    # Efron 1987, equations 2.8 and 6.6, with draws of its own.
    drawn = np.random.default_rng(3).integers(0, 30, (20_000, 30))
    draws = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    mean = sums.sum() / counts.sum()
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    apart = left_out.mean() - left_out
    acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    bias = stats.norm.ppf((draws < mean).mean())
    shifted = bias + stats.norm.ppf([0.025, 0.975])
    ends = np.quantile(draws, stats.norm.cdf(bias + shifted / (1 - acceleration * shifted)))
    width = found.high - found.low
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=0.02 * width)


def test_equivalence_is_shown_exactly_when_the_interval_lies_within_the_margin() -> None:
    rng = np.random.default_rng(4)
    seen = set()
    for shift in np.linspace(-0.3, 0.3, 25):
        statistic = mean_statistic(rng.normal(shift, 0.5, (1, 60)), np.arange(60), 60)
        (estimate,) = estimates([statistic], 1000, 0)
        assert estimate is not None
        checks = cross_checks(statistic, estimate, margin=0.25, alpha=0.05, draws=1000, seed=0)
        interval = estimate.interval(0.05)
        assert interval is not None
        assert checks.p_equivalent is not None
        within = interval.low > -0.25 and interval.high < 0.25
        assert within == (checks.p_equivalent < 0.025)
        seen.add(within)
    assert seen == {True, False}


def test_the_equivalence_test_is_nearly_that_of_statsmodels() -> None:
    values = np.random.default_rng(5).normal(0.05, 0.5, 200)
    values += 0.08 - values.mean()
    statistic = mean_statistic(values[None, :], np.arange(200), 200)
    (estimate,) = estimates([statistic], 20_000, 0)
    checks = cross_checks(statistic, estimate, margin=0.15, alpha=0.05, draws=1000, seed=0)
    expected, *_ = DescrStatsW(values).ttost_mean(-0.15, 0.15)
    assert 0.001 < expected < 0.2
    assert checks.p_equivalent == pytest.approx(float(expected), rel=0.15)


def test_what_the_data_cannot_give_is_none() -> None:
    assert bca_interval(np.arange(5.0), np.ones(5), 0.05, 1000, 0) is None
    assert bca_interval(np.ones(20), np.ones(20), 0.05, 1000, 0) is None
    assert randomisation_p(np.ones(1), 1000, 0) is None
    statistic = mean_statistic(np.array([[1.0, 2.0]]), np.zeros(2, dtype=np.intp), 1)
    checks = cross_checks(statistic, None, margin=0.1, alpha=0.05, draws=1000, seed=0)
    assert (checks.bca, checks.p_randomisation, checks.p_equivalent) == (None, None, None)
