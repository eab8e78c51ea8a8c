"""How well judge and people agree, and people with each other. Knows pairs of scores and their clusters, no arms and no files.

| measure | source |
|---|---|
| Spearman's rho | Spearman 1904: Pearson's correlation of ranks, ties at their mean rank |
| Kendall's tau-b | Kendall 1945, "The Treatment of Ties in Ranking Problems" |
| weighted kappa | Cohen 1968, quadratic weights, over scores rounded half up; from moments (Fleiss & Cohen 1973) |
| Krippendorff's alpha | Hayes & Krippendorff 2007, difference function of interval data; any number of people, scores may be missing |

**Intervals** come from whole clusters drawn with replacement (Davison & Hinkley 1997), as expanded percentiles (Hesterberg 2015), by
`flows.analysis.bootstrap`, cut at the ends of what the measure can be. There is none with too few clusters for the level, nor when more
than 5 % of the draws leave the measure undefined, as where all scores are alike. Every measure is written for answers that count several
times, which scipy's are not, so that all draws are measured at once; with each answer once they equal scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.bootstrap import Estimate, Interval, fewest_clusters
from flows.analysis.quantiles import Floats, Ints

DRAWS = 1000

Measure = Callable[[Floats], Floats]
"""From how often each answer was drawn, (draw, answer), to the measure of each draw; NaN where it is not defined."""

_MOST_UNDEFINED = 0.05
_BLOCK = 250
"""Draws and rows of pairs at once, so that thousands of labels fit into memory."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure of agreement. None where it is not defined; no interval where the clusters do not give one."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often people's score (row) met which score of the judge (column), both rounded half up; `categories` name rows and columns."""

    categories: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of judge and people, over answers that have both scores."""

    answers: int
    clusters: int
    spearman: Figure
    kendall: Figure
    weighted_kappa: Figure
    same: float | None
    """Share of answers on which both scores are the same after rounding."""
    confusion: Confusion


@dataclass(frozen=True, slots=True)
class Annotators:
    """Of people with each other, over answers that two or more of them scored."""

    people: int
    answers: int
    alpha: Figure


def agreement(judge: Floats, human: Floats, clusters: Ints, *, alpha: float, seed: int, scale: tuple[int, int]) -> Agreement:
    """How well the judge's scores agree with the people's of the same answers; `clusters` holds each answer's cluster."""
    one, other = rounded(judge), rounded(human)
    return Agreement(
        answers=len(judge),
        clusters=len(np.unique(clusters)),
        spearman=_figure(spearman(judge, human), clusters, alpha=alpha, seed=seed),
        kendall=_figure(kendall(judge, human), clusters, alpha=alpha, seed=seed),
        weighted_kappa=_figure(quadratic_kappa(one, other), clusters, alpha=alpha, seed=seed),
        same=float(np.mean(one == other)) if len(one) else None,
        confusion=_confusion(one, other, scale),
    )


def annotators(scores: Sequence[Mapping[str, float]], clusters: Ints, *, alpha: float, seed: int) -> Annotators:
    """How well people agree: `scores` holds, for each answer, who gave which score."""
    shared = [place for place, given in enumerate(scores) if len(given) > 1]
    units = [np.array(list(scores[place].values())) for place in shared]
    found = _figure(krippendorff(units), clusters[np.array(shared, dtype=np.intp)], alpha=alpha, seed=seed)
    return Annotators(len({who for given in scores for who in given}), len(shared), found)


def spearman(judge: Floats, human: Floats) -> Measure:
    """Spearman's rho: Pearson's correlation of ranks, ties at their mean rank."""

    def measure(times: Floats) -> Floats:
        return _correlation(times, _ranks(judge, times), _ranks(human, times))

    return measure


def kendall(judge: Floats, human: Floats) -> Measure:
    """Kendall's tau-b: (concordant - discordant) / sqrt(pairs not tied in one * pairs not tied in the other)."""

    def measure(times: Floats) -> Floats:
        agreeing = np.zeros(len(times))
        for start in range(0, len(judge), _BLOCK):
            rows = slice(start, start + _BLOCK)
            signs = np.sign(judge[rows, None] - judge) * np.sign(human[rows, None] - human)
            agreeing += np.einsum("dr,dr->d", times[:, rows], times @ signs.T)
        pairs = times.sum(axis=1) ** 2
        untied = [pairs - (_counts(scores, times) ** 2).sum(axis=1) for scores in (judge, human)]
        return _divided(agreeing, np.sqrt(untied[0] * untied[1]))

    return measure


def quadratic_kappa(judge: Floats, human: Floats) -> Measure:
    """Cohen's kappa with squared differences as weights: 1 - their mean over that of independent scores."""

    def measure(times: Floats) -> Floats:
        total = times.sum(axis=1)
        moments = np.stack([judge, human, judge**2, human**2, (judge - human) ** 2], axis=1)
        one, other, squared, others_squared, apart = (times @ moments).T / total
        expected = squared + others_squared - 2 * one * other
        return 1 - _divided(apart, expected)

    return measure


def krippendorff(units: Sequence[Floats]) -> Measure:
    """Krippendorff's alpha of interval data; each unit holds the two or more scores of one answer.

    Within a unit of m scores all pairs count 1 / (m - 1); squared differences of pairs are moments, so no pair is formed.
    """
    rows = [(len(unit), unit.sum(), unit @ unit, 2 * len(unit) ** 2 * np.var(unit) / (len(unit) - 1)) for unit in units]
    moments = np.array(rows, dtype=np.float64).reshape(-1, 4)

    def measure(times: Floats) -> Floats:
        count, total, squares, observed = (times @ moments).T
        deviations = squares - total**2 / count
        # Equal scores leave a rest of rounding.
        return 1 - _divided(observed * (count - 1), np.where(deviations > 1e-9 * squares, 2 * count * deviations, 0.0))

    return measure


def rounded(scores: Floats) -> Floats:
    """Half up: a mean of runs or of people becomes a score that could have been given."""
    return np.asarray(np.floor(scores + 0.5), dtype=np.float64)


def value_of(measure: Measure, answers: int) -> float | None:
    """The measure with each answer once; None where it is not defined."""
    found = float(measure(np.ones((1, answers)))[0]) if answers else math.nan
    return found if math.isfinite(found) else None


def _counts(scores: Floats, times: Floats) -> Floats:
    """How often each distinct score occurs in each draw, ascending by score."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    return np.add.reduceat(times[:, order], starts, axis=1)


def _ranks(scores: Floats, times: Floats) -> Floats:
    counts = _counts(scores, times)
    middle = np.cumsum(counts, axis=1) - (counts - 1) / 2
    return middle[:, np.unique(scores, return_inverse=True)[1]]


def _correlation(times: Floats, one: Floats, other: Floats) -> Floats:
    total = times.sum(axis=1, keepdims=True)
    one, other = (ranks - (times * ranks).sum(axis=1, keepdims=True) / total for ranks in (one, other))
    return _divided((times * one * other).sum(axis=1), np.sqrt((times * one**2).sum(axis=1) * (times * other**2).sum(axis=1)))


def _divided(above: Floats, below: Floats) -> Floats:
    result: Floats = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return result


def _figure(measure: Measure, clusters: Ints, *, alpha: float, seed: int) -> Figure:
    value = value_of(measure, len(clusters))
    names, members = np.unique(clusters, return_inverse=True)
    count = len(names)
    if value is None or count < fewest_clusters(alpha):
        return Figure(value, None)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(0, DRAWS, _BLOCK):
        chosen = rng.multinomial(count, np.full(count, 1 / count), size=_BLOCK).astype(np.float64)
        drawn.append(measure(chosen[:, members]))
    draws = np.concatenate(drawn)
    defined = np.sort(draws[np.isfinite(draws)])
    if len(defined) < (1 - _MOST_UNDEFINED) * len(draws):
        return Figure(value, None)
    found = Estimate(value, float(defined.std()), count - 1, count, defined, math.sqrt(count / (count - 1))).interval(alpha)
    return Figure(value, None if found is None else Interval(max(-1.0, found.low), min(1.0, found.high), found.level))


def _confusion(judge: Floats, human: Floats, scale: tuple[int, int]) -> Confusion:
    # A score may lie beyond the scale where the judge does not keep to it: no answer is left out.
    low, high = (int(end(np.concatenate([judge, human, scale]))) for end in (np.min, np.max))
    size = high - low + 1
    cells = ((human - low) * size + judge - low).astype(np.intp)
    counts = np.bincount(cells, minlength=size * size).reshape(size, size)
    return Confusion(tuple(range(low, high + 1)), tuple(tuple(int(count) for count in row) for row in counts))
