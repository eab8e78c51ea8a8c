"""PPI++ against its formula, against the classical mean, and against simulated truth."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm  # type: ignore[import-untyped]  # statsmodels ships no type information

from flows.analysis.prediction_powered import Corrected, Labelled, prediction_powered
from flows.analysis.quantiles import Floats, Ints, t_quantile

Flags = npt.NDArray[np.bool_]
Parts = tuple[Floats, Floats, Ints]


def known(people: Floats, judge: Floats, labelled: Floats | Flags, clusters: Ints | None = None) -> Labelled:
    """Items of which some are labelled, drawn evenly."""
    drawn = labelled.astype(bool)
    index = np.arange(len(people)) if clusters is None else clusters
    return Labelled(
        human=np.where(drawn, people, np.nan),
        judge=np.where(drawn, judge, np.nan),
        rest=np.where(drawn, np.nan, judge),
        weights=np.ones(len(people)),
        clusters=index,
        cluster_count=int(index.max()) + 1,
    )


def planted(rng: np.random.Generator, clusters: int, *, follows: float = 0.7, bias: float = 0.6) -> Parts:
    """People's scores with mean 0.3 in clusters of one to five, a judge that follows them with a bias and noise, and the clusters."""
    index = np.repeat(np.arange(clusters), rng.integers(1, 6, clusters))
    people = 0.3 + rng.normal(0, 0.5, clusters)[index] + rng.normal(0, 0.7, len(index))
    judge = follows * people + bias + rng.normal(0, 0.2, clusters)[index] + rng.normal(0, 0.5, len(index))
    return people, judge, index


def some_clusters(rng: np.random.Generator, index: Ints, count: int) -> Floats:
    return np.isin(index, rng.choice(index.max() + 1, count, replace=False)).astype(float)


def test_value_error_and_power_are_those_of_the_papers_formulas() -> None:
    rng = np.random.default_rng(1)
    people = rng.normal(0, 1, 400)
    judge = 0.8 * people + rng.normal(0.5, 0.6, 400)
    labelled = np.zeros(400)
    labelled[:80] = 1
    y, f, others = people[:80], judge[:80], judge[80:]
    # Cov(Y, f) / ((1 + n/N) Var f), with the variance of each sample where the paper pools both.
    power = np.cov(y, f)[0, 1] / (f.var(ddof=1) + 80 / 320 * others.var(ddof=1))
    found = prediction_powered(known(people, judge, labelled), 0.05)
    assert found.power == pytest.approx(power)
    assert found.value == pytest.approx(np.mean(y - power * f) + power * others.mean())
    # Tuning takes one degree of freedom of the 79, and its factor.
    variance = (y - power * f).var(ddof=1) * 79 / 78 / 80 + power**2 * others.var(ddof=1) / 320
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert (found.labelled, found.rest, found.clusters) == (80, 320, 80)


def test_with_many_labels_the_power_is_that_of_the_pooled_variance_too() -> None:
    rng = np.random.default_rng(12)
    people = rng.normal(0, 1, 20_000)
    judge = 0.8 * people + rng.normal(0.5, 0.6, 20_000)
    y, f = people[:4000], judge[:4000]
    pooled = np.cov(y, f)[0, 1] / ((1 + 4000 / 16_000) * judge.var(ddof=1))
    assert prediction_powered(known(people, judge, np.arange(20_000) < 4000), 0.05).power == pytest.approx(pooled, rel=0.02)


def test_at_power_1_it_is_the_judges_mean_with_its_mean_error_taken_off() -> None:
    people, judge, _ = planted(np.random.default_rng(2), 60)
    labelled = np.zeros(len(people))
    labelled[:50] = 1
    found = prediction_powered(known(people, judge, labelled), 0.05, power=1.0)
    assert found.value == pytest.approx(judge[50:].mean() + np.mean(people[:50] - judge[:50]))
    variance = np.var(people[:50] - judge[:50], ddof=1) / 50 + np.var(judge[50:], ddof=1) / (len(judge) - 50)
    assert found.standard_error == pytest.approx(math.sqrt(variance))


def test_at_power_0_it_is_the_classical_clustered_mean() -> None:
    rng = np.random.default_rng(3)
    people, judge, index = planted(rng, 40)
    labelled = some_clusters(rng, index, 15)
    found = prediction_powered(known(people, judge, labelled, index), 0.05, power=0.0)
    drawn = labelled == 1
    fit = sm.OLS(people[drawn], np.ones(drawn.sum())).fit(
        cov_type="cluster", cov_kwds={"groups": index[drawn], "use_correction": True}, use_t=True
    )
    assert found.value == pytest.approx(float(fit.params[0]))
    assert found.standard_error == pytest.approx(float(fit.bse[0]))
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(fit.conf_int(0.05)[0]))


@pytest.mark.parametrize(("follows", "expected"), [(-1.0, 0.0), (0.0, 0.0), (0.3, 1.0)])
def test_power_stays_between_0_and_1(follows: float, expected: float) -> None:
    rng = np.random.default_rng(4)
    people = rng.normal(0, 1, 2000)
    # A judge that squeezes the scale would be worth more than 1, one that reverses it less than 0.
    judge = follows * people + rng.normal(0, 0.05, 2000) * (follows != 0)
    labelled = (np.arange(2000) < 100).astype(float)
    found = prediction_powered(known(people, judge, labelled), 0.05)
    assert found.power == expected
    if expected == 0:
        alone = prediction_powered(known(people, judge, labelled), 0.05, power=0.0)
        assert (found.value, found.standard_error) == (alone.value, alone.standard_error)


def test_power_grows_with_what_the_judge_knows_and_with_how_many_items_are_not_labelled() -> None:
    rng = np.random.default_rng(5)
    people, noise = rng.normal(0, 1, 3000), rng.normal(0, 1, 3000)

    def power(noise_sd: float, items: int) -> float:
        labelled = (np.arange(items) < 150).astype(float)
        return prediction_powered(known(people[:items], people[:items] + noise_sd * noise[:items], labelled), 0.05).power or 0.0

    assert 0 < power(3.0, 3000) < power(1.0, 3000) < power(0.2, 3000) < 1
    assert power(0.2, 300) < power(0.2, 1000) < power(0.2, 3000)


def test_a_good_judge_narrows_the_interval_and_a_useless_one_hardly_widens_it() -> None:
    rng = np.random.default_rng(6)
    people = rng.normal(0, 1, 1000)
    labelled = (np.arange(1000) < 100).astype(float)

    def width(judge: Floats, power: float | None = None) -> float:
        interval = prediction_powered(known(people, judge, labelled), 0.05, power=power).interval
        assert interval is not None
        return interval.high - interval.low

    alone = width(people, power=0.0)
    assert width(people + rng.normal(0, 0.3, 1000)) < 0.6 * alone
    assert width(rng.normal(0, 1, 1000)) < 1.03 * alone


def test_all_items_labelled_leave_nothing_for_the_judge() -> None:
    people, judge, index = planted(np.random.default_rng(7), 20)
    found = prediction_powered(known(people, judge, np.ones(len(people)), index), 0.05)
    assert (found.power, found.rest) == (0.0, 0)
    assert found.value == pytest.approx(people.mean())


def test_few_clusters_give_a_value_without_an_interval_and_none_gives_nothing() -> None:
    people, judge, index = planted(np.random.default_rng(8), 30)
    five = prediction_powered(known(people, judge, index < 5, index), 0.05)
    assert five.value is not None
    assert five.standard_error is not None
    assert (five.interval, five.clusters) == (None, 5)
    one = prediction_powered(known(people, judge, index < 1, index), 0.05)
    assert (one.standard_error, one.interval, one.power) == (None, None, 0.0)
    assert prediction_powered(known(people, judge, index < 0, index), 0.05).value is None


def test_training_seeds_add_their_variance() -> None:
    rng = np.random.default_rng(9)
    people, judge, index = planted(rng, 60)
    sample = known(people, judge, some_clusters(rng, index, 25), index)
    without, added = prediction_powered(sample, 0.05), prediction_powered(sample, 0.05, seeds=((0.04, 2.0),))
    assert without.standard_error is not None
    assert added.standard_error == pytest.approx(math.sqrt(without.standard_error**2 + 0.04))
    assert added.value == without.value
    assert added.dof is not None
    assert added.interval is not None
    assert added.standard_error is not None
    assert added.interval.high - added.interval.low == pytest.approx(2 * t_quantile(0.975, added.dof) * added.standard_error)


def _rate(found: list[Corrected], truth: float) -> int:
    intervals = [one.interval for one in found]
    return sum(interval is not None and interval.low <= truth <= interval.high for interval in intervals)


@pytest.mark.parametrize("design", ["clusters", "items", "chosen"])
def test_the_truth_is_covered_at_the_nominal_rate_whatever_the_judges_bias(design: str) -> None:
    rng = np.random.default_rng([10, len(design)])
    corrected, judged = [], []
    for _ in range(400):
        people, judge, index = planted(rng, 120)
        if design == "chosen":
            # Where the judge is far from the middle, labels are more likely.
            chance = np.clip(0.15 + 0.25 * np.abs(judge - judge.mean()), 0, 1)
            drawn = rng.random(len(people)) < chance
            nothing = np.full(len(people), np.nan)
            sample = Labelled(np.where(drawn, people, nothing), np.where(drawn, judge, nothing), judge, 1 / chance, index, 120)
        elif design == "items":
            sample = known(people, judge, rng.permutation(len(people)) < 80, index)
        else:
            sample = known(people, judge, some_clusters(rng, index, 40), index)
        corrected.append(prediction_powered(sample, 0.05))
        judged.append(prediction_powered(known(judge, judge, np.ones(len(judge)), index), 0.05))
    # 95 % of 400 is 380; three binomial standard deviations of 4.4 are 13.
    assert 367 <= _rate(corrected, 0.3) <= 393
    assert _rate(judged, 0.3) < 20
    values = [one.value for one in corrected if one.value is not None]
    errors = [one.standard_error for one in corrected if one.standard_error is not None]
    assert np.std(values) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.12)
