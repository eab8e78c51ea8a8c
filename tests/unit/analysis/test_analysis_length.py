"""Scores and answer length: slopes equal statsmodels, planted length bias is found and taken out, matched contrasts are plain contrasts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm
from scipy import stats

from flows.analysis.length import EqualLength, equal_length, length_slopes, word_counts
from flows.analysis.paired import paired_statistic
from flows.analysis.scores import ScoreTable, score_table
from flows.records import Answer, Contestant, Item, Judgement

Floats = npt.NDArray[np.float64]
WHO = (Contestant("base", "base", "m"), Contestant("long", "long", "m"), Contestant("other", "other", "m"))


def built(scores: Floats, words: npt.NDArray[np.int_], size: int = 2) -> tuple[ScoreTable, dict[str, Floats]]:
    """A table from scores (contestant, item) and its lengths; NaN is missing, -1 words an answer without text."""
    items = [Item(f"q{n:04}", "?", ("!",), f"c{n // size:04}") for n in range(scores.shape[1])]
    who = WHO[: len(scores)]
    cells = [(one, items[n], float(scores[k, n]), int(words[k, n])) for k, one in enumerate(who) for n in range(len(items))]
    judged = [
        Judgement(one.id, item.id, 0, "accuracy", 0, None if np.isnan(score) else score, "", 0, 0, None) for one, item, score, _ in cells
    ]
    answers = [answer(one.id, item.id, count) for one, item, _, count in cells]
    table = score_table(items, who, judged)
    return table, dict(word_counts(table, answers))


def answer(contestant: str, item: str, words: int, sample: int = 0) -> Answer:
    text = None if words < 0 else " ".join(["word"] * words)
    return Answer(contestant, item, sample, text, False, "stop", 0, 0, 0.0, None, "", (), (), ())


def planted(
    rng: np.random.Generator, *, items: int = 80, arms: int = 3, slope: float = 0.5, longer: float = 2.0, better: float = 0.0
) -> tuple[Floats, npt.NDArray[np.int_]]:
    """A judge that gives `slope` points for each doubling; the first arm after the control is `longer` times as long, and truly better."""
    words = np.round(np.exp(rng.normal(2.5, 0.5, (arms, items))))
    words[1] = np.round(words[1] * longer)
    cluster = np.repeat(rng.normal(0, 0.3, (arms, items // 2)), 2, axis=1)
    scores = rng.normal(0, 0.6, items) + cluster + rng.normal(0, 0.3, (arms, items)) + slope * np.log2(1 + words)
    scores[1] += better
    return scores, words.astype(int)


def contrast(table: ScoreTable, lengths: dict[str, Floats], arm: str = "long", control: str = "base", **settings: float) -> EqualLength:
    found = equal_length(table, lengths, control=control, alpha=0.05, draws=1000, seed=0, **settings)
    return next(one for one in found if one.arm == arm)


def test_the_slope_is_that_of_a_regression_with_a_dummy_for_every_question_and_contestant() -> None:
    scores, words = planted(np.random.default_rng(1), items=30)
    scores[2, 5], words[1, 7] = np.nan, -1
    table, lengths = built(scores, words)
    [slope] = length_slopes(table, lengths, alpha=0.05)
    present = ~np.isnan(scores) & (words >= 0)
    contestant, item = np.nonzero(present)
    dummies = np.column_stack([item[:, None] == np.arange(30)[None], contestant[:, None] == np.arange(1, 3)[None]]).astype(float)
    columns = np.column_stack([np.log2(1 + words[present]), dummies])
    fit = sm.OLS(scores[present], columns).fit(cov_type="cluster", cov_kwds={"groups": item // 2})
    rows = len(item)
    assert slope.answers == rows == 88
    assert slope.per_doubling == pytest.approx(fit.params[0])
    # The reference counts the questions as parameters; those are nested in the clusters.
    error = fit.bse[0] * np.sqrt((rows - columns.shape[1]) / (rows - 3))
    assert slope.interval is not None
    assert slope.interval.high - slope.interval.low == pytest.approx(2 * stats.t.ppf(0.975, 14) * error)
    assert slope.p_value == pytest.approx(2 * stats.t.sf(abs(fit.params[0]) / error, 14))


def test_intervals_of_the_slope_and_of_the_equal_length_contrast_cover_what_was_planted() -> None:
    rng, trials = np.random.default_rng(2), 200
    slopes = 0
    equal = 0
    for _ in range(trials):
        table, lengths = built(*planted(rng, slope=0.5, longer=1.0, better=0.4))
        [slope] = length_slopes(table, lengths, alpha=0.05)
        found = contrast(table, lengths)
        assert slope.interval is not None
        assert found.interval is not None
        slopes += slope.interval.low <= 0.5 <= slope.interval.high
        equal += found.interval.low <= 0.4 <= found.interval.high
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.95)
    assert low <= slopes <= high
    assert low <= equal <= high


def test_a_longer_arm_that_is_no_better_wins_as_judged_and_not_at_equal_length() -> None:
    table, lengths = built(*planted(np.random.default_rng(3), items=400, longer=1.6))
    found = contrast(table, lengths)
    assert found.words is not None
    assert found.words > 5
    assert found.difference is not None
    assert found.difference > 0.25
    assert found.interval is not None
    assert found.interval.low < 0 < found.interval.high
    assert not found.extrapolated
    assert found.matched_interval is not None
    assert found.matched_interval.low < 0 < found.matched_interval.high
    assert 0 < found.matched < found.items


def test_exchanging_the_arms_turns_the_sign() -> None:
    table, lengths = built(*planted(np.random.default_rng(4), better=0.3))
    forth, back = contrast(table, lengths), contrast(table, lengths, "base", "long")
    assert forth.at_equal_length == pytest.approx(-(back.at_equal_length or 0))
    assert forth.words == pytest.approx(-(back.words or 0))
    assert forth.matched == back.matched


def test_where_all_answers_are_of_one_length_the_contrast_is_as_judged() -> None:
    scores, _ = planted(np.random.default_rng(5))
    table, lengths = built(scores, np.full(scores.shape, 9))
    found = contrast(table, lengths)
    assert found.at_equal_length == pytest.approx(found.difference)
    assert (found.matched, found.matched_difference) == (found.items, found.difference)
    assert length_slopes(table, lengths, alpha=0.05)[0].per_doubling is None


def test_where_one_is_longer_everywhere_by_the_same_words_nothing_can_be_said() -> None:
    scores, words = planted(np.random.default_rng(6))
    words[1] = words[0] + 20
    found = contrast(*built(scores, words))
    assert (found.at_equal_length, found.interval, found.extrapolated) == (None, None, True)


def test_the_matched_contrast_is_the_plain_one_over_the_matched_questions() -> None:
    scores, words = planted(np.random.default_rng(7), longer=1.2)
    table, lengths = built(scores, words)
    found = contrast(table, lengths, caliper=1.5)
    ratio = (1 + words[1]) / (1 + words[0])
    near = (ratio <= 1.5) & (ratio >= 1 / 1.5)
    plain = paired_statistic(np.where(near, scores[1:2], np.nan), np.where(near, scores[:1], np.nan), table.clusters, table.cluster_count)
    assert (found.matched, found.matched_difference) == (int(near.sum()), pytest.approx(plain.mean))
    none = contrast(table, {**lengths, "long": lengths["base"] * 10 + 10}, caliper=1.0)
    assert (none.matched, none.matched_difference, none.matched_interval) == (0, None, None)
    with pytest.raises(ValueError, match=r"caliper is 0\.8"):
        contrast(table, lengths, caliper=0.8)


def test_what_training_seeds_add_widens_the_interval() -> None:
    rng = np.random.default_rng(8)
    scores, words = planted(rng, items=60, arms=2)
    who = [WHO[0], *(replace(WHO[1], seed=seed) for seed in (1, 2, 3))]
    items = [Item(f"q{n:04}", "?", ("!",), f"c{n // 2:04}") for n in range(60)]

    def width(shifts: tuple[float, ...]) -> float:
        rows = [scores[0], *(scores[1] + shift for shift in shifts)]
        judged = [
            Judgement(one.id, item.id, 0, "accuracy", 0, float(row[n]), "", 0, 0, None)
            for one, row in zip(who, rows, strict=True)
            for n, item in enumerate(items)
        ]
        table = score_table(items, who, judged)
        lengths = word_counts(
            table, [answer(one.id, item.id, int(words[min(k, 1), n])) for k, one in enumerate(who) for n, item in enumerate(items)]
        )
        found = contrast(table, dict(lengths))
        assert found.interval is not None
        return found.interval.high - found.interval.low

    assert width((-1.0, 0.0, 1.0)) > 2 * width((0.0, 0.0, 0.0))


def test_words_are_the_mean_over_samples_and_missing_without_text() -> None:
    table, _ = built(np.zeros((2, 3)), np.zeros((2, 3), dtype=int))
    answers = [answer("base", "q0000", 2), answer("base", "q0000", 5, sample=1), answer("base", "q0001", -1), answer("long", "q0002", 0)]
    counts = word_counts(table, answers)
    np.testing.assert_array_equal(counts["base"], [[3.5, np.nan, np.nan]])
    np.testing.assert_array_equal(counts["long"], [[np.nan, np.nan, 0.0]])
