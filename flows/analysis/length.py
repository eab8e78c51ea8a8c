"""Answer length as a bias of the judge: how scores follow length, and contrasts at equal length. Knows score tables, no verdicts.

Judges like long answers, and fine-tuning changes length. Three looks, each a check beside the contrast and never in its place: where a
longer answer scores more because it says more, length is not a bias but the way by which the arm works, and holding it fixed takes that
away.

**Slope.** Score = question + contestant + b * log2(1 + words): what a doubling of an answer's words goes with, among answers of one
contestant, held against the other answers to the same questions (two-way fixed effects; the questions are taken out by their means, Frisch
& Waugh 1933, Econometrica 1(4)). Standard errors are clustered (Liang & Zeger 1986) with the factor G/(G-1) * (n-1)/(n-k), where k does
not count the questions, since they are nested in clusters (Cameron & Miller 2015, Journal of Human Resources 50(2), section III.B).

**At equal length.** The idea of Dubois et al. 2024 (arXiv 2404.04475): model what the judge said with a term in the difference
of lengths, tanh of it over its standard deviation, and set that term to 0. They model a preference by a logistic link; here scores have
differences, so the link is linear: d_i = a + b * tanh((w_i - w0_i) / sd(w - w0)) + e_i, and a is the contrast at equal length. Pairing
takes the place of their difficulty of instructions. Exchanging the two arms turns the sign of a, and an arm against itself gives 0, as
they ask of a length-controlled figure. The spread between training seeds is added to its variance, as in `paired`.

**Matched.** The plain contrast, over the questions only to which both arms gave answers of about one length: matching within a caliper
(Cochran & Rubin 1973, Sankhya A 35(4)).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from statsmodels.regression.linear_model import OLS  # type: ignore[import-untyped]  # statsmodels ships no type information

from flows.analysis.bootstrap import Interval, fewest_clusters
from flows.analysis.clustered import satterthwaite
from flows.analysis.paired import Statistic, estimates, over_seeds, paired_statistic
from flows.analysis.quantiles import Floats, Ints, t_cdf, t_quantile
from flows.analysis.scores import ScoreTable
from flows.records import Answer

CALIPER = 1.25
"""Answers of about one length: the longer has at most so many times the words of the shorter, each counted with one more."""
_FLAT = 1e-9

Lengths = Mapping[str, Floats]
"""Arm -> words (seed, item), NaN where there is no text; rows and columns are those of the table's scores."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Points of the scale for a doubling of the words, on one criterion. None where lengths or clusters are too few to say."""

    criterion: str
    per_doubling: float | None
    interval: Interval | None
    p_value: float | None
    answers: int
    clusters: int


@dataclass(frozen=True, slots=True)
class EqualLength:
    """An arm minus the control as judged, and at equal length. `extrapolated` where one of the two is the longer one for every question:
    then no answers of equal length stand behind the figure. `matched` are the questions that the matched contrast is over."""

    arm: str
    criterion: str
    words: float | None
    """Mean of the arm's words minus the control's."""
    difference: float | None
    at_equal_length: float | None
    interval: Interval | None
    extrapolated: bool
    items: int
    matched: int
    matched_difference: float | None
    matched_interval: Interval | None


def word_counts(table: ScoreTable, answers: Iterable[Answer]) -> Lengths:
    """Words of every arm's answers, the mean over samples."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(list)
    for answer in answers:
        if answer.text is not None:
            counts[answer.contestant, answer.item].append(len(answer.text.split()))
    return {
        arm: np.array([[_mean(counts.get((one.id, item), [])) for item in table.items] for one in contestants], dtype=np.float64)
        for arm, contestants in table.arms.items()
    }


def _mean(counts: list[int]) -> float:
    return sum(counts) / len(counts) if counts else np.nan


def length_slopes(table: ScoreTable, lengths: Lengths, *, alpha: float) -> tuple[Slope, ...]:
    """How scores follow length, by criterion."""
    words = np.log2(1 + np.concatenate([lengths[arm] for arm in table.arms]))
    return tuple(_slope(table, criterion, words, alpha) for criterion in table.criteria)


def _slope(table: ScoreTable, criterion: str, words: Floats, alpha: float) -> Slope:
    scores = np.concatenate([table.scores[arm, criterion] for arm in table.arms])
    present = ~np.isnan(scores) & ~np.isnan(words)
    # A question with one answer says nothing about the others' lengths.
    present &= present.sum(axis=0) > 1
    contestant, item = np.nonzero(present)
    clusters = table.clusters[item]
    dummies = (contestant[:, None] == np.unique(contestant)[None, 1:]).astype(np.float64)
    columns = np.column_stack([words[present], dummies])
    centred, target = _within(columns, item), _within(scores[present][:, None], item)[:, 0]
    own = centred[:, 0] - _fitted(centred[:, 1:], centred[:, 0])
    count, used = int(present.sum()), int(np.unique(clusters).size)
    if used < 2 or float(own @ own) <= _FLAT * count:
        return Slope(criterion, None, None, None, count, used)
    fit = OLS(target, centred).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    value, error = float(fit.params[0]), float(fit.bse[0])
    interval = _interval(value, error, used - 1, used, alpha)
    p_value = None if interval is None else _p_value(value, error, used - 1)
    return Slope(criterion, value, interval, p_value, count, used)


def _within(columns: Floats, groups: Ints) -> Floats:
    """Columns without their means in each group."""
    counts = np.bincount(groups)
    means = np.stack([np.bincount(groups, weights=column) for column in columns.T]) / np.maximum(counts, 1)
    centred: Floats = columns - means.T[groups]
    return centred


def _fitted(columns: Floats, target: Floats) -> Floats:
    fitted: Floats = columns @ np.linalg.lstsq(columns, target, rcond=None)[0]
    return fitted


def equal_length(
    table: ScoreTable, lengths: Lengths, *, control: str, alpha: float, draws: int, seed: int, caliper: float = CALIPER
) -> tuple[EqualLength, ...]:
    """Every arm against the control, by criterion, then arm. Raises ValueError for a caliper below 1."""
    if caliper < 1:
        raise ValueError(f"caliper is {caliper}: give how many times longer an answer may be, as a number of at least 1")
    pairs = [(arm, criterion) for criterion in table.criteria for arm in table.arms if arm != control]
    words = {arm: over_seeds(counts) for arm, counts in lengths.items()}
    near = {arm: np.abs(np.log2((1 + words[arm]) / (1 + words[control]))) <= np.log2(caliper) + _FLAT for arm in words}
    whole = [_paired(table, pair, control, ~np.isnan(words[pair[0]] - words[control])) for pair in pairs]
    matched = [_paired(table, pair, control, near[pair[0]]) for pair in pairs]
    found = estimates(matched, draws, seed)
    made = []
    for (arm, criterion), statistic, alike, estimate in zip(pairs, whole, matched, found, strict=True):
        used = ~np.isnan(statistic.values)
        gaps = (words[arm] - words[control])[used]
        value, interval = _at_equal_length(statistic, gaps, table.clusters[used], alpha)
        made.append(
            EqualLength(
                arm=arm,
                criterion=criterion,
                words=float(gaps.mean()) if gaps.size else None,
                difference=statistic.mean,
                at_equal_length=value,
                interval=interval,
                extrapolated=bool(gaps.size) and bool((gaps > 0).all() or (gaps < 0).all()),
                items=statistic.items,
                matched=alike.items,
                matched_difference=alike.mean,
                matched_interval=estimate.interval(alpha) if estimate else None,
            )
        )
    return tuple(made)


def _paired(table: ScoreTable, pair: tuple[str, str], control: str, items: Floats) -> Statistic:
    """The paired contrast over some of the items."""
    arm, other = (np.where(items, table.scores[name, pair[1]], np.nan) for name in (pair[0], control))
    return paired_statistic(arm, other, table.clusters, table.cluster_count)


def _at_equal_length(statistic: Statistic, gaps: Floats, clusters: Ints, alpha: float) -> tuple[float | None, Interval | None]:
    """The contrast where both are of one length; None where the lengths differ by the same number of words everywhere."""
    values = statistic.values[~np.isnan(statistic.values)]
    if statistic.clusters < 2:
        return None, None
    spread = float(gaps.std())
    if spread <= _FLAT and abs(float(gaps.mean())) > _FLAT:
        return None, None
    term = np.tanh(gaps / spread) if spread > _FLAT else np.zeros_like(gaps)
    columns = np.column_stack([np.ones_like(gaps), term]) if spread > _FLAT else np.ones((gaps.size, 1))
    if gaps.size <= columns.shape[1]:
        return None, None
    fit = OLS(values, columns).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    layers = ((float(fit.bse[0]) ** 2, float(statistic.clusters - 1)), *zip(statistic.variances[1:], statistic.dofs[1:], strict=True))
    error = float(np.sqrt(sum(variance for variance, _ in layers)))
    value = float(fit.params[0])
    return value, _interval(value, error, satterthwaite(layers), statistic.clusters, alpha)


def _interval(value: float, error: float, dof: float, clusters: int, alpha: float) -> Interval | None:
    if clusters < fewest_clusters(alpha):
        return None
    reach = t_quantile(1 - alpha / 2, dof) * error
    return Interval(value - reach, value + reach, 1 - alpha)


def _p_value(value: float, error: float, dof: float) -> float:
    return 2 * t_cdf(-abs(value) / error, dof) if error > 0 else float(value == 0)
