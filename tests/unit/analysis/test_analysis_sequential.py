"""Looks at growing data: published boundaries, what they spend, and trials simulated under them."""

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information

from flows.analysis.sequential import FARTHEST, Spending, crossing_probability, looks, spent

FIFTHS = [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # Reboussin et al. 2000, two-sided 5 %, five equal looks.
        ("obrien-fleming", [4.8769, 3.3570, 2.6803, 2.2898, 2.0310]),
        ("pocock", [2.4380, 2.4268, 2.4102, 2.3966, 2.3860]),
    ],
)
def test_boundaries_are_the_published_ones(spending: Spending, published: list[float]) -> None:
    assert [look.boundary for look in looks(FIFTHS, 0.05, spending)] == pytest.approx(published, abs=2e-4)


@pytest.mark.parametrize(
    ("count", "pocock", "obrien_fleming"),
    [(2, 2.178, 1.977), (3, 2.289, 2.004), (4, 2.361, 2.024), (5, 2.413, 2.040), (10, 2.555, 2.087)],
)
def test_the_constants_of_jennison_and_turnbull_cross_with_five_percent(count: int, pocock: float, obrien_fleming: float) -> None:
    # Jennison & Turnbull 2000, tables 2.1 and 2.3: rounded to three decimals.
    fractions = [(look + 1) / count for look in range(count)]
    assert crossing_probability(fractions, [pocock] * count) == pytest.approx(0.05, abs=1e-4)
    assert crossing_probability(fractions, [obrien_fleming / t**0.5 for t in fractions]) == pytest.approx(0.05, abs=1e-4)


def test_two_looks_are_what_the_bivariate_normal_gives() -> None:
    first, second = looks([0.3, 1.0], 0.05, "pocock")
    both = stats.multivariate_normal([0, 0], [[1, 0.3**0.5], [0.3**0.5, 1]])
    inside = both.cdf([first.boundary, second.boundary], lower_limit=[-first.boundary, -second.boundary])
    assert 1 - inside == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("spending", ["obrien-fleming", "pocock"])
@pytest.mark.parametrize("fractions", [[1.0], [0.01, 0.3, 0.31, 0.9, 1.0], [0.5, 0.7]])
def test_uneven_looks_spend_what_the_function_allows_and_no_more(spending: Spending, fractions: list[float]) -> None:
    found = looks(fractions, 0.05, spending)
    crossed = crossing_probability(fractions, [look.boundary for look in found])
    assert crossed == pytest.approx(spent(fractions[-1], 0.05, spending), abs=1e-8)
    assert found[-1].spent == spent(fractions[-1], 0.05, spending)
    assert looks(fractions[:-1] or fractions, 0.05, spending) == found[: max(1, len(fractions) - 1)], "later looks change no earlier ones"


def test_one_look_at_the_end_is_the_trial_without_looks() -> None:
    (look,) = looks([1.0])
    assert (look.boundary, look.alpha, look.spent) == pytest.approx((1.959964, 0.05, 0.05), abs=1e-6)


def test_a_look_too_early_to_stop_keeps_a_finite_boundary() -> None:
    first, last = looks([0.001, 1.0])
    assert first.boundary == FARTHEST
    assert last.boundary == pytest.approx(1.959964, abs=1e-5)


def test_the_power_of_a_trial_with_looks_is_that_of_simulated_ones() -> None:
    boundaries = np.array([look.boundary for look in looks(FIFTHS)])
    trials, drift = 40_000, 2.8
    steps = np.random.default_rng(0).normal(drift * 0.2, 0.2**0.5, (trials, 5))
    z = steps.cumsum(axis=1) / np.sqrt(FIFTHS)
    stopped = int((np.abs(z) > boundaries).any(axis=1).sum())
    expected = crossing_probability(FIFTHS, boundaries.tolist(), drift)
    assert stats.binomtest(stopped, trials, expected).pvalue > 0.001
    assert 0.77 < expected < crossing_probability([1.0], [1.959964], drift), "looks cost a little power"


@pytest.mark.parametrize("fractions", [[], [0.0, 1.0], [0.5, 0.5], [0.6, 0.4], [0.5, 1.1]])
def test_fractions_that_do_not_rise_to_one_are_refused(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="rising fractions"):
        looks(fractions)


def test_an_alpha_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        looks([1.0], 5)
