"""Agreement of judge and people against scipy, scikit-learn and published values, and its intervals against planted cases."""

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information
from sklearn.metrics import cohen_kappa_score, confusion_matrix  # type: ignore[import-untyped]  # the library ships no types

from flows.analysis.agreement import Agreement, Figure, agreement, annotators, kendall, krippendorff, quadratic_kappa, spearman, value_of
from flows.analysis.quantiles import Floats, Ints

NAN = np.nan


def scores(seed: int, count: int = 60) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    human = rng.integers(1, 6, count).astype(float)
    return np.clip(np.round(human + rng.normal(0.4, 1, count)), 1, 5), human


def held(judge: Floats, human: Floats, clusters: Ints | None = None, alpha: float = 0.05) -> Agreement:
    return agreement(judge, human, np.arange(len(judge)) if clusters is None else clusters, alpha=alpha, seed=0, scale=(1, 5))


def test_values_are_those_of_scipy_and_scikit_learn() -> None:
    judge, human = scores(1)
    found = held(judge, human)
    assert found.spearman.value == pytest.approx(stats.spearmanr(judge, human).statistic)
    assert found.kendall.value == pytest.approx(stats.kendalltau(judge, human, variant="b").statistic)
    assert found.weighted_kappa.value == pytest.approx(cohen_kappa_score(judge, human, weights="quadratic"))
    assert found.same == pytest.approx(np.mean(judge == human))
    assert found.confusion.categories == (1, 2, 3, 4, 5)
    assert np.array_equal(found.confusion.counts, confusion_matrix(human, judge, labels=[1, 2, 3, 4, 5]))


def test_means_of_runs_are_rounded_half_up_for_kappa_and_confusion_but_not_for_ranks() -> None:
    human = np.array([1.0, 2, 3, 4, 5] * 4)
    judge = human - np.tile([0.5, 0.4, 0.3, 0.2, 0.1], 4)
    found = held(judge, human)
    assert found.weighted_kappa.value == pytest.approx(1.0)
    assert found.same == 1.0
    assert found.spearman.value == pytest.approx(1.0)


def test_a_score_beyond_the_scale_is_counted_too() -> None:
    found = held(np.array([6.0, 1, 2, 3]), np.array([5.0, 1, 2, 3]))
    assert found.confusion.categories == (1, 2, 3, 4, 5, 6)
    assert np.sum(found.confusion.counts) == 4


@pytest.mark.parametrize(
    ("table", "published"),
    [
        # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": four observers, twelve units, interval data.
        (
            [
                [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
                [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
                [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
                [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
            ],
            0.849,
        ),
        # The example of three coders and fifteen units that encyclopaedias give.
        (
            [
                [NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3],
                [1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
                [NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4],
            ],
            0.811,
        ),
    ],
)
def test_krippendorffs_alpha_is_the_published_one(table: list[list[float]], published: float) -> None:
    units = [column[~np.isnan(column)] for column in np.array(table).T]
    pairable = [unit for unit in units if len(unit) > 1]
    assert value_of(krippendorff(pairable), len(pairable)) == pytest.approx(published, abs=5e-4)


def test_people_are_compared_where_several_scored() -> None:
    given = [{"ann": 4.0, "bob": 4.0}, {"ann": 2.0}, {"ann": 1.0, "bob": 2.0}, {"cem": 5.0}]
    found = annotators(given, np.arange(4), alpha=0.05, seed=0)
    assert (found.people, found.answers) == (3, 2)
    # Scores 4 4 1 2: observed 2 * (0 + 1) / 4, expected 2 * (37 - 11^2 / 4) / 3.
    assert found.alpha.value == pytest.approx(1 - 0.5 / (2 * 6.75 / 3))
    assert annotators([{"ann": 3.0}], np.arange(1), alpha=0.05, seed=0).alpha == Figure(None, None)


def test_scores_without_variance_have_no_correlation_rather_than_zero() -> None:
    found = held(np.full(20, 3.0), scores(2, 20)[1])
    assert found.spearman == found.kendall == Figure(None, None)
    assert held(np.full(20, 3.0), np.full(20, 3.0)).weighted_kappa == Figure(None, None)
    assert value_of(krippendorff([np.array([3.0, 3.0])] * 5), 5) is None


def test_too_few_clusters_have_a_value_and_no_interval() -> None:
    judge, human = scores(3)
    found = held(judge, human, np.arange(60) % 5)
    assert found.clusters == 5
    assert found.kendall.value is not None
    assert found.kendall.interval is None


def test_no_answer_at_all_has_no_agreement() -> None:
    nothing = np.empty(0)
    found = held(nothing, nothing, np.empty(0, dtype=np.intp))
    assert (found.answers, found.spearman, found.same) == (0, Figure(None, None), None)
    assert np.sum(found.confusion.counts) == 0


def test_intervals_follow_clusters_not_rows() -> None:
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(10), 15)
    shared = rng.normal(0, 1, (2, 10))[:, clusters]
    judge, human = 3 + 0.2 * rng.normal(0, 1, (2, 150)) + shared
    clustered, alone = held(judge, human, clusters).spearman.interval, held(judge, human).spearman.interval
    assert clustered is not None
    assert alone is not None
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert -1 <= clustered.low < clustered.high <= 1


def test_an_answer_that_is_drawn_several_times_counts_as_often() -> None:
    judge, human = scores(6, 40)
    times = np.random.default_rng(7).integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), times)
    pairs = (
        (spearman, stats.spearmanr(judge[repeated], human[repeated]).statistic),
        (kendall, stats.kendalltau(judge[repeated], human[repeated]).statistic),
        (quadratic_kappa, cohen_kappa_score(judge[repeated], human[repeated], weights="quadratic")),
    )
    for measure, expected in pairs:
        assert measure(judge, human)(times[None].astype(float)) == pytest.approx([expected])


def test_a_correlation_is_covered_at_about_the_nominal_rate() -> None:
    # Spearman's rho of a bivariate normal is 6 / pi * asin(r / 2).
    rng = np.random.default_rng(5)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    covered = 0
    for _ in range(60):
        one, other = rng.normal(size=(2, 60))
        interval = held(one, 0.6 * one + 0.8 * other, alpha=0.1).spearman.interval
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    # 90 % of 60 is 54, with a standard deviation of 2.3; three of them.
    assert covered >= 47
