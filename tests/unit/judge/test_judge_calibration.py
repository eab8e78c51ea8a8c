"""Agreement of judge and people against worked values and planted cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]  # the library ships no types

from services.judge.calibration import agreement
from services.judge.domain import Estimate, Pair

HUMAN = [1, 2, 3, 4, 5] * 6


def test_a_judge_like_the_people_agrees_fully() -> None:
    result = agreement([Pair(score, score) for score in HUMAN])
    for estimate in (result.spearman, result.kendall, result.weighted_kappa):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.0, 1.0, 1.0))
    assert result.bias == Estimate(0.0, 0.0, 0.0)


def test_a_judge_that_reverses_the_scale_disagrees_fully() -> None:
    result = agreement([Pair(6 - score, score) for score in HUMAN])
    assert result.spearman.value == pytest.approx(-1)
    assert result.weighted_kappa.value == pytest.approx(-1)


def test_values_equal_those_worked_by_hand() -> None:
    judge, human = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5], [1, 2, 3, 5, 4, 2, 1, 3, 4, 5]
    result = agreement([Pair(j, h) for j, h in zip(judge, human, strict=True)])
    # Every score comes twice on either side, so ranks are linear in scores: variance 2 on both sides, and with four pairs off by one the
    # covariance is 2 - 4 / (2 * 10) = 1.8.
    assert result.spearman.value == pytest.approx(0.9)
    assert result.weighted_kappa.value == pytest.approx(1 - 4 / (10 * 4))
    # tau-b by its definition: 45 pairs, of which 5 are tied on either side.
    concordant = discordant = 0
    for i in range(10):
        for k in range(i):
            product = (judge[i] - judge[k]) * (human[i] - human[k])
            concordant += product > 0
            discordant += product < 0
    assert result.kendall.value == pytest.approx((concordant - discordant) / 40)


def test_bias_is_the_mean_of_judge_minus_human_and_scores_are_rounded_half_up_for_kappa() -> None:
    result = agreement([Pair(score - 0.5, score) for score in HUMAN if score > 1])
    assert result.bias.value == pytest.approx(-0.5)
    assert result.weighted_kappa.value == pytest.approx(1.0)


def test_scores_without_variance_have_no_correlation_rather_than_zero() -> None:
    result = agreement([Pair(3, score) for score in HUMAN])
    assert result.spearman == result.kendall == Estimate(None)
    assert result.bias.value == 0
    assert agreement([Pair(3, 3)] * 12).weighted_kappa == Estimate(None)


def test_intervals_follow_clusters_not_rows() -> None:
    rng = np.random.default_rng(1)
    shifts = rng.normal(0, 0.4, 12)
    rows = [
        (float(np.clip(3 + shifts[cluster] + rng.normal(0, 0.05), 1, 5)), 3.0, str(cluster)) for cluster in range(12) for _ in range(20)
    ]
    clustered = agreement([Pair(*row) for row in rows]).bias
    alone = agreement([Pair(judge, human) for judge, human, _ in rows]).bias
    assert clustered.low is not None
    assert clustered.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_too_few_clusters_have_a_value_and_no_interval() -> None:
    result = agreement([Pair(score, score, str(number % 5)) for number, score in enumerate(HUMAN)])
    assert result.spearman == Estimate(pytest.approx(1.0), None, None)  # type: ignore[arg-type]  # compares like a float


def test_weighted_kappa_equals_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    judge, human = rng.integers(1, 6, 40), rng.integers(2, 6, 40)
    result = agreement([Pair(float(j), float(h)) for j, h in zip(judge, human, strict=True)])
    assert result.weighted_kappa.value == pytest.approx(cohen_kappa_score(judge, human, weights="quadratic"))
