"""The four verdicts, Holm's correction, the sentence, and the plan for what would decide."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.analysis.bootstrap import Interval
from flows.analysis.paired import estimates, mean_statistic
from flows.analysis.power import decided_probability, detectable, needed
from flows.analysis.verdict import PValues, Reading, Verdict, effect, holm, p_values, read_interval, read_p_values, sentence


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> Iterator[None]:
    """statsmodels' `multipletests` collects garbage at each call; with a large heap that would take most of these tests' time."""
    gc.freeze()
    yield
    gc.unfreeze()


def interval(low: float, high: float) -> Interval:
    return Interval(low, high, 0.95)


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [
        (0.01, 0.2, Reading(Verdict.BETTER)),
        (0.0, 0.2, Reading(Verdict.NON_INFERIOR)),
        (-0.05, 0.05, Reading(Verdict.NON_INFERIOR)),
        (-0.09, -0.01, Reading(Verdict.NON_INFERIOR, below_control=True)),
        (-0.1, 0.05, Reading(Verdict.INCONCLUSIVE)),
        (-0.3, 0.3, Reading(Verdict.INCONCLUSIVE)),
        (-0.2, 0.0, Reading(Verdict.INCONCLUSIVE)),
        (-0.2, -0.01, Reading(Verdict.WORSE)),
        (-0.4, -0.2, Reading(Verdict.WORSE)),
    ],
)
def test_the_verdict_follows_from_where_the_interval_lies(low: float, high: float, reading: Reading) -> None:
    assert read_interval(interval(low, high), margin=0.1) == reading


def test_no_interval_is_inconclusive() -> None:
    assert read_interval(None, 0.1).verdict is Verdict.INCONCLUSIVE
    assert read_p_values(None, 0.05).verdict is Verdict.INCONCLUSIVE


def test_a_margin_of_zero_leaves_no_room_for_non_inferior() -> None:
    assert read_interval(interval(0.0, 0.1), 0.0).verdict is Verdict.INCONCLUSIVE
    assert read_interval(interval(0.01, 0.1), 0.0).verdict is Verdict.BETTER


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        read_interval(interval(0, 1), -0.1)


@pytest.mark.parametrize("mean", [-0.6, -0.3, -0.08, 0.0, 0.3])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_a_family_of_one_reads_as_its_interval(mean: float, noise: float) -> None:
    rng = np.random.default_rng(int(100 * noise))
    (estimate,) = estimates([mean_statistic(rng.normal(mean, noise, (1, 60)), np.arange(60), 60)], 2000, 0)
    assert estimate is not None
    (corrected,) = holm([p_values(estimate, 0.1)])
    assert read_p_values(corrected, 0.05) == read_interval(estimate.interval(0.05), 0.1)


def test_holm_agrees_with_numbers_worked_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04, times 3, 2, 1: 0.03, 0.04, 0.04.
    family = [PValues(0.04, 0.9, 0.001), PValues(0.01, 0.9, 0.002), PValues(0.02, 0.9, 0.5)]
    adjusted = [entry for entry in holm(family) if entry is not None]
    assert [entry.better for entry in adjusted] == pytest.approx([0.04, 0.03, 0.04])
    assert [entry.worse for entry in adjusted] == [1.0, 1.0, 1.0]
    assert [entry.non_inferior for entry in adjusted] == pytest.approx([0.003, 0.004, 0.5])


def test_a_contrast_without_an_estimate_still_counts_in_the_family() -> None:
    adjusted = holm([PValues(0.01, 0.9, 0.01), None])
    assert adjusted[1] is None
    assert adjusted[0] is not None
    assert adjusted[0].better == pytest.approx(0.02)
    assert holm([]) == ()


_P = st.floats(0.0001, 1.0)


@given(st.lists(st.tuples(_P, _P, _P), min_size=1, max_size=12))
def test_correction_never_makes_a_claim_easier_and_better_stays_non_inferior(rows: list[tuple[float, float, float]]) -> None:
    # A difference above 0 is above -margin too, so its p value there is at most as large.
    family = [PValues(better, worse, min(better, within)) for better, worse, within in rows]
    for plain, corrected in zip(family, holm(family), strict=True):
        assert corrected is not None
        assert corrected.better >= plain.better
        assert corrected.worse >= plain.worse
        assert plain.non_inferior <= corrected.non_inferior <= corrected.better


def test_false_better_or_worse_stay_rare_over_a_family_that_shares_its_control() -> None:
    rng = np.random.default_rng(11)
    families, size, items = 300, 12, 60
    false_claims = alone = 0
    for seed in range(families):
        control = rng.normal(0, 1, items)
        differences = rng.normal(0, 1, (size, items)) - control
        found = estimates([mean_statistic(row[None], np.arange(items), items) for row in differences], 1000, seed)
        family = [p_values(estimate, 0.1) for estimate in found if estimate is not None]
        readings = [read_p_values(corrected, 0.05) for corrected in holm(family)]
        false_claims += any(r.verdict in (Verdict.BETTER, Verdict.WORSE) or r.below_control for r in readings)
        alone += any(read_p_values(entry, 0.05).verdict in (Verdict.BETTER, Verdict.WORSE) for entry in family)
    # 5 % of 300 is 15; three binomial standard deviations of 3.8 are 11. Uncorrected, it happens several times as often.
    assert false_claims <= 26
    assert alone > 50


def test_the_sentence_says_all_that_decided() -> None:
    said = sentence(
        Reading(Verdict.NON_INFERIOR),
        arm="raft-1000",
        control="base",
        criterion="accuracy",
        effect=effect(-0.02, interval(-0.071, 0.043), 0.1),
        scale="1-5",
        margin=0.1,
        items=300,
        seeds=3,
    )
    assert said == "raft-1000 is NON-INFERIOR to base on accuracy: -0.02 [-0.07, 0.04] on 1-5, margin 0.1, 300 items, 3 seeds"


def test_the_sentence_marks_what_is_within_the_margin_but_below_control() -> None:
    said = sentence(
        Reading(Verdict.NON_INFERIOR, below_control=True),
        arm="bare",
        control="base",
        criterion="accuracy",
        effect="-0.05 [-0.08, -0.02]",
        scale="1-5",
        margin=0.1,
        items=1,
        seeds=0,
        remark="look twice",
    )
    assert said.endswith("margin 0.1, 1 item, within margin although below control; look twice")


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.004, 0.3, "0.15 [0.004, 0.300]"),
        (-0.0996, 0.2, "0.15 [-0.0996, 0.2000]"),
        (-0.001, 0.3, "0.15 [0.00, 0.30]"),
        (-0.5, 0.3, "0.15 [-0.50, 0.30]"),
    ],
)
def test_rounding_never_moves_an_end_of_the_interval_across_a_boundary(low: float, high: float, text: str) -> None:
    shown = effect(0.15, interval(low, high), 0.1)
    assert shown.split(" ", 1)[1] == text.split(" ", 1)[1]


def test_a_missing_effect_is_said_in_words() -> None:
    assert effect(None, None, 0.1) == "no item answered by both"
    assert effect(0.2, None, 0.1) == "0.20 [no interval]"


@pytest.mark.parametrize("shift", [-0.12, 0.0, 0.08])
def test_the_planned_number_of_items_decides_about_as_often_as_planned(shift: float) -> None:
    rng = np.random.default_rng(13)
    pilot = rng.normal(0, 1, 40)
    pilot = (pilot - pilot.mean()) / pilot.std(ddof=1) + shift
    need = needed(mean_statistic(pilot[None], np.arange(40), 40), margin=0.15, alpha=0.05)
    assert need.items is not None
    assert need.items == need.clusters
    decided = 0
    for seed in range(200):
        sample = rng.normal(shift, 1, (1, need.items))
        (estimate,) = estimates([mean_statistic(sample, np.arange(need.items), need.items)], 1000, seed)
        assert estimate is not None
        decided += read_interval(estimate.interval(0.05), 0.15).verdict is not Verdict.INCONCLUSIVE
    # 80 % of 200 is 160; three binomial standard deviations of 5.7 are 17.
    assert 143 <= decided <= 177
    assert f"about {need.items} items would decide" in need.reason


def test_clusters_multiply_the_items_needed() -> None:
    rng = np.random.default_rng(14)
    values = np.repeat(rng.normal(0, 1, 20), 3)
    need = needed(mean_statistic(values[None], np.repeat(np.arange(20), 3), 20), margin=0.2, alpha=0.05)
    assert need.items is not None
    assert need.clusters is not None
    assert need.items == 3 * need.clusters
    assert f"in {need.clusters} clusters" in need.reason


def test_without_a_margin_a_difference_of_zero_is_never_decided() -> None:
    values = np.tile([1.0, -1.0], 20)
    need = needed(mean_statistic(values[None], np.arange(40), 40), margin=0.0, alpha=0.05)
    assert need.items is None
    assert "no realistic number" in need.reason


def test_more_items_do_not_help_when_seeds_disagree() -> None:
    rng = np.random.default_rng(15)
    scores = rng.normal(0, 1, 50)
    need = needed(mean_statistic(np.stack([scores - 1, scores + 1]), np.arange(50), 50), margin=0.2, alpha=0.05)
    assert need.items is None
    assert "train more seeds" in need.reason


def test_nothing_is_planned_from_one_cluster_or_from_equal_differences() -> None:
    single = needed(mean_statistic(np.ones((1, 3)), np.zeros(3, dtype=np.intp), 1), margin=0.1, alpha=0.05)
    equal = needed(mean_statistic(np.ones((1, 3)), np.arange(3), 3), margin=0.1, alpha=0.05)
    assert (single.items, equal.items) == (None, None)
    assert "fewer than two clusters" in single.reason
    assert "all 3 differences are equal" in equal.reason


@given(difference=st.floats(-1, 1), error=st.floats(0.01, 2), margin=st.floats(0, 1))
def test_a_smaller_standard_error_decides_at_least_as_often(difference: float, error: float, margin: float) -> None:
    wide = decided_probability(difference, error, 100, margin, 0.05)
    narrow = decided_probability(difference, error / 2, 100, margin, 0.05)
    assert 0 <= wide <= narrow + 1e-9
    assert narrow <= 1


def test_the_detectable_difference_is_2_8_standard_errors_when_there_are_many_clusters() -> None:
    values = np.random.default_rng(16).normal(size=(1, 4000))
    statistic = mean_statistic(values, np.arange(4000), 4000)
    assert statistic.standard_error is not None
    assert detectable(statistic, 0.05) == pytest.approx(2.80 * statistic.standard_error, rel=0.005)
