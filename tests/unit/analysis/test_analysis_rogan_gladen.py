"""Rogan and Gladen's correction against their formula, and against simulated shares."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from flows.analysis.quantiles import Floats, Ints
from flows.analysis.rogan_gladen import Answers, Share, rogan_gladen, share_difference


def answers(judge: list[float] | Floats, human: list[float] | Floats, clusters: Ints | None = None) -> Answers:
    index = np.arange(len(judge)) if clusters is None else clusters
    return Answers(np.array(judge, dtype=float), np.array(human, dtype=float), np.ones(len(judge)), index, int(index.max()) + 1)


def counted(*, yes: tuple[int, int], no: tuple[int, int], rest: tuple[int, int]) -> Answers:
    """From numbers: (judge says yes, judge says no) among answers good to people, bad to people, and not labelled."""
    judge = [1.0] * yes[0] + [0.0] * yes[1] + [1.0] * no[0] + [0.0] * no[1] + [1.0] * rest[0] + [0.0] * rest[1]
    return answers(judge, [1.0] * sum(yes) + [0.0] * sum(no) + [math.nan] * sum(rest))


def test_the_share_is_that_of_the_formula() -> None:
    found = rogan_gladen(counted(yes=(45, 5), no=(10, 40), rest=(245, 155)))
    assert (found.apparent, found.sensitivity, found.specificity) == pytest.approx((0.6, 0.9, 0.8))
    assert (found.yes, found.no) == (50, 50)
    assert found.share(0.05).value == pytest.approx((0.6 + 0.8 - 1) / (0.9 + 0.8 - 1))


def test_the_error_is_that_of_the_formula_when_few_of_many_answers_are_labelled() -> None:
    # 100 labelled of 20,100: the overlap of both samples, which the formula leaves out, hardly counts.
    found = rogan_gladen(counted(yes=(45, 5), no=(10, 40), rest=(12_000, 8_000)))
    p = found.raw
    assert p is not None
    q = found.apparent or 0.0
    variance = (q * (1 - q) / 20_100 + p**2 * 0.9 * 0.1 / 50 + (1 - p) ** 2 * 0.8 * 0.2 / 50) / 0.7**2
    assert found.share(0.05).standard_error == pytest.approx(math.sqrt(variance), rel=0.02)


def test_a_judge_without_error_changes_nothing() -> None:
    found = rogan_gladen(counted(yes=(20, 0), no=(0, 10), rest=(30, 40)))
    share = found.share(0.05)
    assert share.value == pytest.approx(0.5)
    assert share.standard_error == pytest.approx(math.sqrt(0.25 / 99))


def test_a_share_is_cut_at_0_and_1_and_a_difference_is_not() -> None:
    low = rogan_gladen(counted(yes=(9, 1), no=(4, 6), rest=(10, 90)))
    high = rogan_gladen(counted(yes=(7, 3), no=(0, 10), rest=(95, 5)))
    assert (low.share(0.05).value, high.share(0.05).value) == (0.0, 1.0)
    assert low.raw is not None
    assert low.raw < 0
    assert high.raw is not None
    assert high.raw > 1
    interval = low.share(0.05).interval
    assert interval is not None
    assert interval.low == 0.0
    # Both have the same number of answers, each a cluster of its own.
    assert share_difference(high, low, 0.05).value == pytest.approx(high.raw - low.raw)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (counted(yes=(0, 0), no=(2, 8), rest=(5, 5)), "no labelled answer is good to people"),
        (counted(yes=(8, 2), no=(0, 0), rest=(5, 5)), "no labelled answer is bad to people"),
        (counted(yes=(5, 5), no=(5, 5), rest=(5, 5)), "do not follow people's"),
    ],
)
def test_what_cannot_be_corrected_has_no_share_but_a_reason(found: Answers, reason: str) -> None:
    share = rogan_gladen(found).share(0.05)
    assert (share.value, share.standard_error, share.interval) == (None, None, None)
    assert reason in share.reason
    assert reason in share_difference(rogan_gladen(found), rogan_gladen(counted(yes=(9, 1), no=(1, 9), rest=(5, 5))), 0.05).reason


def test_labels_of_few_clusters_give_no_interval() -> None:
    clusters = np.repeat(np.arange(10), 8)
    human = np.where(clusters < 5, np.arange(80) % 2, np.nan)
    share = rogan_gladen(answers(np.where(np.arange(80) % 5 == 0, 0.0, np.arange(80) % 2), human, clusters)).share(0.05)
    assert share.value is not None
    assert share.interval is None
    assert "5 clusters, 6 are needed" in share.reason


def test_seeds_widen_an_interval_by_their_variance_over_the_squared_youden_index() -> None:
    found = rogan_gladen(counted(yes=(45, 5), no=(10, 40), rest=(240, 160)))
    alone, added = found.share(0.05), found.share(0.05, ((0.01, 3.0),))
    assert alone.standard_error is not None
    assert added.standard_error == pytest.approx(math.sqrt(alone.standard_error**2 + 0.01 / 0.7**2))


def _simulated(rng: np.random.Generator, index: Ints, good: Floats, labelled: npt.NDArray[np.bool_], errs: tuple[float, float]) -> Answers:
    judge = np.where(good == 1, rng.random(len(good)) < errs[0], rng.random(len(good)) > errs[1]).astype(float)
    return answers(judge, np.where(labelled, good, np.nan), index)


def test_shares_and_their_difference_are_covered_when_the_judge_errs_by_arm() -> None:
    rng = np.random.default_rng(11)
    covered, judged, differences = 0, 0, 0
    for _ in range(400):
        index = np.repeat(np.arange(120), rng.integers(1, 6, 120))
        easy = rng.beta(3, 2, 120)[index]
        labelled = np.isin(index, rng.choice(120, 50, replace=False))
        # Of one difficulty, so both arms are good in 60 % of answers; the judge is lenient with the first and strict with the second.
        arm, control = (
            rogan_gladen(_simulated(rng, index, (rng.random(len(index)) < easy).astype(float), labelled, errs))
            for errs in ((0.95, 0.65), (0.75, 0.95))
        )
        share, difference = arm.share(0.05), share_difference(arm, control, 0.05)
        covered += _holds(share, 0.6)
        differences += _holds(difference, 0.0)
        judged += abs((arm.apparent or 0.0) - (control.apparent or 0.0)) < 0.1
    # 95 % of 400 is 380; three binomial standard deviations are 13. The delta method errs a little to the safe side.
    assert 367 <= covered <= 397
    assert 367 <= differences <= 397
    assert judged < 20


def _holds(share: Share, truth: float) -> bool:
    return share.interval is not None and share.interval.low <= truth <= share.interval.high
