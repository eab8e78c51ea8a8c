"""Clustered variance, bootstrap intervals and p values: against statsmodels, hand-worked numbers and simulated truth."""

import numpy as np
import pytest
import statsmodels.api as sm  # type: ignore[import-untyped]  # statsmodels ships no type information
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.analysis.bootstrap import Estimate, fewest_clusters
from flows.analysis.clustered import between_seed_variance, cluster_totals, clustered_variance, satterthwaite
from flows.analysis.paired import Statistic, estimates, mean_statistic, over_seeds, paired_statistic
from flows.analysis.quantiles import Floats, Ints

DRAWS = 1000


def one(statistic: Statistic, seed: int = 0) -> Estimate:
    (estimate,) = estimates([statistic], DRAWS, seed)
    assert estimate is not None
    return estimate


def clusters_of(rng: np.random.Generator, count: int) -> Ints:
    """Items of `count` clusters that hold one to five items each."""
    return np.repeat(np.arange(count), rng.integers(1, 6, count))


@pytest.mark.parametrize("count", [2, 9, 60])
def test_the_clustered_standard_error_is_that_of_statsmodels(count: int) -> None:
    rng = np.random.default_rng(count)
    clusters = clusters_of(rng, count)
    values = rng.normal(0, 1, count)[clusters] + rng.normal(0, 1, len(clusters))
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": True})
    assert clustered_variance(*cluster_totals(values, clusters, count)) == pytest.approx(float(fit.bse[0]) ** 2)


def test_with_one_item_a_cluster_the_standard_error_is_the_usual_one() -> None:
    values = np.random.default_rng(1).normal(size=40)
    variance = clustered_variance(*cluster_totals(values, np.arange(40), 40))
    assert variance == pytest.approx(values.var(ddof=1) / 40)


def test_one_cluster_has_no_standard_error_and_no_interval() -> None:
    statistic = mean_statistic(np.array([[1.0, 2.0, 3.0]]), np.zeros(3, dtype=np.intp), 1)
    assert statistic.mean == 2.0
    assert statistic.standard_error is None
    assert estimates([statistic], DRAWS, 0) == (None,)


def test_no_item_at_all_has_no_mean() -> None:
    statistic = mean_statistic(np.full((1, 3), np.nan), np.arange(3), 3)
    assert (statistic.mean, statistic.items) == (None, 0)
    assert estimates([statistic], DRAWS, 0) == (None,)


@pytest.mark.parametrize(("alpha", "count"), [(0.05, 6), (0.5, 2), (0.9, 2), (0.05 / 36, 11)])
def test_an_interval_asks_for_as_many_clusters_as_a_sign_flip_test_would(alpha: float, count: int) -> None:
    assert fewest_clusters(alpha) == count
    values = np.random.default_rng(0).normal(size=(1, 40))
    enough, short = values[:, :count], values[:, : count - 1]
    assert one(mean_statistic(enough, np.arange(count), count)).interval(alpha) is not None
    if count > 2:
        assert one(mean_statistic(short, np.arange(count - 1), count - 1)).interval(alpha) is None


def test_equal_differences_make_a_point_and_a_p_value_that_still_counts_the_clusters() -> None:
    estimate = one(mean_statistic(np.full((1, 10), 0.5), np.arange(10), 10))
    interval = estimate.interval(0.05)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.5, 0.5))
    assert estimate.p_above(0.0) == 2.0**-10
    assert estimate.p_below(0.0) == 1.0


def test_all_ties_give_no_evidence_of_a_difference_and_full_evidence_of_non_inferiority() -> None:
    estimate = one(mean_statistic(np.zeros((1, 10)), np.arange(10), 10))
    assert estimate.p_two_sided() == 1.0
    assert estimate.p_above(-0.1) == 2.0**-10


def test_only_items_that_both_arms_answered_are_paired_and_the_others_counted() -> None:
    nan = np.nan
    arm, control = np.array([[3.0, nan, 5.0, nan]]), np.array([[1.0, 2.0, nan, nan]])
    statistic = paired_statistic(arm, control, np.arange(4), 4)
    assert (statistic.mean, statistic.items, statistic.dropped) == (2.0, 1, 2)


def test_an_item_that_one_seed_misses_takes_the_mean_of_the_others() -> None:
    assert over_seeds(np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])) == pytest.approx([2.0, 4.0, np.nan], nan_ok=True)


def test_the_order_of_items_does_not_change_the_interval() -> None:
    rng = np.random.default_rng(3)
    clusters, order = clusters_of(rng, 20), np.random.default_rng(4)
    arm, control = rng.normal(size=(3, len(clusters))), rng.normal(size=(1, len(clusters)))
    shuffled = order.permutation(len(clusters))
    first = one(paired_statistic(arm, control, clusters, 20))
    second = one(paired_statistic(arm[:, shuffled], control[:, shuffled], clusters[shuffled], 20))
    assert second.draws == pytest.approx(first.draws, abs=1e-9)


def test_a_statistic_has_the_same_draws_whatever_stands_beside_it() -> None:
    rng = np.random.default_rng(5)
    clusters = clusters_of(rng, 15)
    statistics = [mean_statistic(rng.normal(size=(2, len(clusters))), clusters, 15) for _ in range(3)]
    alone = one(statistics[1], seed=8)
    among = estimates(statistics, DRAWS, 8)[1]
    assert among is not None
    assert among.draws == pytest.approx(alone.draws, abs=1e-12)


def test_the_draws_vary_as_the_standard_error_says() -> None:
    rng = np.random.default_rng(6)
    clusters = clusters_of(rng, 200)
    statistic = mean_statistic(rng.normal(0, 1, 200)[clusters][None] + rng.normal(0, 1, (1, len(clusters))), clusters, 200)
    (estimate,) = estimates([statistic], 20_000, 0)
    assert estimate is not None
    assert estimate.draws.std() == pytest.approx(statistic.standard_error, rel=0.03)


def test_satterthwaite_weighs_the_degrees_of_freedom_by_variance() -> None:
    assert satterthwaite(((1.0, 10.0),)) == 10.0
    assert satterthwaite(((1.0, 10.0), (0.0, 1.0))) == pytest.approx(10.0)
    assert satterthwaite(((3.0, 9.0), (1.0, 1.0))) == pytest.approx(16 / (1 + 1))
    assert satterthwaite(((0.0, 7.0), (0.0, 1.0))) == 7.0


def test_the_variance_between_seeds_is_recovered_without_the_noise_of_items() -> None:
    rng = np.random.default_rng(7)
    clusters = clusters_of(rng, 40)

    def found(spread: float) -> float:
        variances = []
        for _ in range(300):
            values = rng.normal(0, 1, len(clusters)) + rng.normal(0, spread, (4, 1)) + rng.normal(0, 0.5, (4, len(clusters)))
            variances.append(between_seed_variance(values, clusters, 40))
        return float(np.mean([v for v in variances if v is not None]))

    assert found(0.3) == pytest.approx(0.09, rel=0.15)
    assert found(0.0) < 0.5**2 / len(clusters)


def test_one_seed_says_nothing_of_the_spread_between_seeds() -> None:
    assert between_seed_variance(np.ones((1, 5)), np.arange(5), 5) is None
    assert between_seed_variance(np.array([[1.0] * 5, [np.nan] * 5]), np.arange(5), 5) is None


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(8)
    clusters = clusters_of(rng, 50)
    scores = rng.normal(0, 1, len(clusters))
    agreeing = one(mean_statistic(np.stack([scores] * 3), clusters, 50)).interval(0.05)
    differing = one(mean_statistic(np.stack([scores - 0.5, scores, scores + 0.5]), clusters, 50)).interval(0.05)
    assert agreeing is not None
    assert differing is not None
    assert differing.high - differing.low > 2 * (agreeing.high - agreeing.low)


_SCORES = st.lists(st.sampled_from([1.0, 2.0, 3.0, 3.5, 4.0, 5.0]), min_size=8, max_size=24)


@given(arm=_SCORES, control=_SCORES, shift=st.floats(-3, 3), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_swapping_arms_flips_the_sign_and_a_constant_shifts_the_interval(
    arm: list[float], control: list[float], shift: float, seed: int
) -> None:
    size = min(len(arm), len(control))
    one_arm, other = np.array([arm[:size]]), np.array([control[:size]])
    clusters = np.arange(size) // 2 if size >= 16 else np.arange(size)
    count = int(clusters.max()) + 1
    forward = one(paired_statistic(one_arm, other, clusters, count), seed).interval(0.05)
    backward = one(paired_statistic(other, one_arm, clusters, count), seed).interval(0.05)
    shifted = one(paired_statistic(one_arm + shift, other, clusters, count), seed).interval(0.05)
    assert forward is not None
    assert backward is not None
    assert shifted is not None
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low), abs=1e-9)
    assert (shifted.low, shifted.high) == pytest.approx((forward.low + shift, forward.high + shift), abs=1e-9)


@given(values=_SCORES, null=st.floats(0.5, 5.5), alpha=st.sampled_from([0.2, 0.05, 0.01]))
@settings(max_examples=60, deadline=None)
def test_a_p_value_is_below_half_of_alpha_exactly_when_the_interval_lies_beyond_the_null(
    values: list[float], null: float, alpha: float
) -> None:
    estimate = one(mean_statistic(np.array([values]), np.arange(len(values)), len(values)))
    interval = estimate.interval(alpha)
    if interval is None or min(abs(interval.low - null), abs(interval.high - null)) < 1e-6:
        return
    assert (estimate.p_above(null) <= alpha / 2) == (interval.low > null)
    assert (estimate.p_below(null) <= alpha / 2) == (interval.high < null)


def _covered(rng: np.random.Generator, *, clusters: int, seeds: int, spread: float, skewed: bool, truth: float) -> tuple[bool, bool]:
    """One simulated trial with a planted difference: does the 95 % interval cover it, and does it lie above it?"""
    index = clusters_of(rng, clusters)
    shared: Floats = rng.exponential(0.4, clusters) - 0.4 if skewed else rng.normal(0, 0.4, clusters)
    control = rng.normal(3, 1, len(index))
    noise = rng.normal(0, 0.6, (seeds, len(index)))
    arm = control + truth + shared[index] + rng.normal(0, spread, (seeds, 1)) + noise
    interval = one(paired_statistic(arm, control[None], index, clusters), int(rng.integers(1 << 30))).interval(0.05)
    assert interval is not None
    return interval.low <= truth <= interval.high, interval.low > truth


@pytest.mark.parametrize(
    ("clusters", "seeds", "spread", "skewed"),
    [(12, 1, 0.0, False), (60, 1, 0.0, False), (60, 1, 0.0, True), (60, 3, 0.0, False), (60, 5, 0.05, False)],
)
def test_simulated_trials_are_covered_at_the_nominal_rate(clusters: int, seeds: int, spread: float, skewed: bool) -> None:
    rng = np.random.default_rng([clusters, seeds, int(skewed)])
    rounds = [_covered(rng, clusters=clusters, seeds=seeds, spread=spread, skewed=skewed, truth=0.2) for _ in range(400)]
    # 95 % of 400 is 380; three binomial standard deviations of 4.4 are 13.
    assert 367 <= sum(covered for covered, _ in rounds) <= 393
    # Falsely above is 2.5 %, 10 of 400, with a standard deviation of 3.1; five of them, for the five cases and both estimates of variance.
    assert sum(above for _, above in rounds) <= 25
