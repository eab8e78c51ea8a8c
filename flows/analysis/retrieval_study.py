"""Ways to search compared: how well each finds what is relevant, and by how much they differ, question by question. Knows neither indexes
nor services.

Every condition answers the same questions, so conditions are compared in pairs as arms of a trial are: the difference of each question, and
the cluster bootstrap of its mean (`bootstrap`). All intervals come from one set of resamples. Where conditions cut documents differently, a
question whose evidence only one of them holds in a passage counts for that one alone and is dropped from the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flows.analysis.bootstrap import Estimate, Interval
from flows.analysis.paired import Statistic, estimates, mean_statistic, paired_statistic
from flows.analysis.quantiles import Floats
from flows.analysis.retrieval import RetrievalMetric, cluster_numbers, measured
from flows.records import Item


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one condition found. `ranked` and `gains` are by item; they name documents where the data judge documents, else passages."""

    name: str
    k: int
    ranked: Mapping[str, Sequence[str]]
    gains: Mapping[str, Mapping[str, int]]

    def judged(self, item: str) -> bool:
        """Whether there is anything to find."""
        return any(gain > 0 for gain in self.gains.get(item, {}).values())


@dataclass(frozen=True, slots=True)
class ConditionQuality:
    """How well one condition finds what is relevant: every measure at every depth. `values` are by metric, then by item of the study; None
    where the item has nothing to find in this condition."""

    name: str
    k: int
    queries: int
    metrics: tuple[RetrievalMetric, ...]
    values: tuple[tuple[float | None, ...], ...]

    def metric(self, name: str, k: int) -> RetrievalMetric:
        """One of the metrics."""
        return next(metric for metric in self.metrics if (metric.name, metric.k) == (name, k))


@dataclass(frozen=True, slots=True)
class Difference:
    """Condition minus baseline in the main measure, over the questions that both have something to find for."""

    condition: str
    baseline: str
    mean: float | None
    interval: Interval | None
    queries: int
    above: int
    equal: int
    below: int

    @property
    def sure(self) -> bool:
        """Whether the interval excludes 0: more than the choice of questions explains."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True, slots=True)
class StudyAnalysis:
    """All conditions in the order given. The main measure is nDCG at `depth`; `differences` are from the first condition, `pairs` between
    every two, the later minus the earlier."""

    depth: int
    alpha: float
    draws: int
    seed: int
    items: tuple[str, ...]
    clusters: int
    without_gold: int
    conditions: tuple[ConditionQuality, ...]
    differences: tuple[Difference, ...]
    pairs: tuple[Difference, ...]

    @property
    def best(self) -> ConditionQuality:
        """The condition with the highest main measure; of equals the first."""
        return max((one for one in self.conditions if one.queries), key=lambda one: one.metric("ndcg", self.depth).mean)

    def difference(self, one: str, other: str) -> Difference:
        """The first condition minus the second. Raises KeyError for one condition twice."""
        for pair in self.pairs:
            if (pair.condition, pair.baseline) == (one, other):
                return pair
            if (pair.condition, pair.baseline) == (other, one):
                interval = None if pair.interval is None else Interval(-pair.interval.high, -pair.interval.low, pair.interval.level)
                mean = None if pair.mean is None else -pair.mean
                return Difference(one, other, mean, interval, pair.queries, above=pair.below, equal=pair.equal, below=pair.above)
        raise KeyError((one, other))


def main_depth(depths: Sequence[int]) -> int:
    """Where nDCG is the main measure: 10 where that is measured, as is usual, else the deepest."""
    return 10 if 10 in depths else max(depths)


def compare(
    items: Sequence[Item], rankings: Sequence[Ranking], depths: Sequence[int], *, alpha: float = 0.05, draws: int = 10_000, seed: int = 0
) -> StudyAnalysis | None:
    """Measures every condition at every depth and at every condition's k. None when no item has anything to find in any of them."""
    judged = sorted((item for item in items if any(ranking.judged(item.id) for ranking in rankings)), key=lambda item: item.id)
    if not judged:
        return None
    ks = sorted({*depths, *(ranking.k for ranking in rankings)})
    clusters, count = cluster_numbers(judged)
    depth = main_depth(depths)
    tables: list[Floats] = []
    names: list[tuple[str, int]] = []
    for ranking in rankings:
        names, values = _values(ranking, judged, ks)
        tables.append(values)
    means = [[mean_statistic(line[None], clusters, count) for line in table] for table in tables]
    main = names.index(("ndcg", depth))
    pairs = list(combinations(range(len(rankings)), 2))
    differences = [paired_statistic(tables[later][main][None], tables[first][main][None], clusters, count) for first, later in pairs]
    found = iter(estimates([*(one for row in means for one in row), *differences], draws, seed))
    conditions = tuple(
        ConditionQuality(
            ranking.name,
            ranking.k,
            row[0].items,
            tuple(_metric(name, statistic, next(found), alpha) for name, statistic in zip(names, row, strict=True)),
            tuple(tuple(None if np.isnan(value) else float(value) for value in line) for line in table),
        )
        for ranking, row, table in zip(rankings, means, tables, strict=True)
    )
    compared = tuple(
        _difference(rankings[later].name, rankings[first].name, statistic, next(found), alpha)
        for (first, later), statistic in zip(pairs, differences, strict=True)
    )
    return StudyAnalysis(
        depth=depth,
        alpha=alpha,
        draws=draws,
        seed=seed,
        items=tuple(item.id for item in judged),
        clusters=count,
        without_gold=len(items) - len(judged),
        conditions=conditions,
        differences=tuple(one for one in compared if one.baseline == rankings[0].name),
        pairs=compared,
    )


def _values(ranking: Ranking, items: Sequence[Item], depths: Sequence[int]) -> tuple[list[tuple[str, int]], Floats]:
    """(measure, item); NaN where the condition has nothing to find for the item."""
    places = [place for place, item in enumerate(items) if ranking.judged(item.id)]
    names, known = measured([items[place].id for place in places], ranking.ranked, ranking.gains, depths)
    values: Floats = np.full((len(names), len(items)), np.nan)
    values[:, places] = known
    return names, values


def _metric(name: tuple[str, int], statistic: Statistic, estimate: Estimate | None, alpha: float) -> RetrievalMetric:
    # Without a question there is no mean, which is not 0.
    mean = float("nan") if statistic.mean is None else statistic.mean
    return RetrievalMetric(*name, mean, estimate.interval(alpha) if estimate else None)


def _difference(condition: str, baseline: str, statistic: Statistic, estimate: Estimate | None, alpha: float) -> Difference:
    known = statistic.values[~np.isnan(statistic.values)]
    return Difference(
        condition,
        baseline,
        statistic.mean,
        estimate.interval(alpha) if estimate else None,
        statistic.items,
        above=int((known > 0).sum()),
        equal=int((known == 0).sum()),
        below=int((known < 0).sum()),
    )
