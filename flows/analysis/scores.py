"""From judgements to scores: one number for each contestant, item and criterion, missing kept missing. Knows no statistics beyond
averaging.

A score is the mean over samples of the mean over the judge runs that gave a score. An item without a valid run is NaN, never 0. Training
seeds of an arm stay apart as rows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.quantiles import Floats, Ints
from flows.records import Contestant, Item, Judgement


@dataclass(frozen=True, slots=True)
class Missing:
    """Judgements of one arm on one criterion that gave no score, by reason; `items` counts the items left without any score."""

    judgements: int
    missing: int
    items: int
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Scores of every arm over the same items. Arms, criteria and metrics stand in order of first appearance, items as given, seeds
    ascending."""

    items: tuple[str, ...]
    clusters: Ints
    """Cluster of each item, as an index into `cluster_names`."""
    cluster_names: tuple[str, ...]
    """Sorted, so that the order of the items changes no result."""
    arms: Mapping[str, tuple[Contestant, ...]]
    """The contestants of each arm, by seed: row k of an array belongs to contestant k."""
    criteria: tuple[str, ...]
    metrics: tuple[str, ...]
    scores: Mapping[tuple[str, str], Floats]
    """(arm, criterion) -> (seed, item), NaN where missing. Every pair is there."""
    metric_values: Mapping[tuple[str, str], Floats]
    """(arm, metric) -> (seed, item), NaN where missing. Every pair is there."""
    missing: Mapping[tuple[str, str], Missing]
    judge_sd: Mapping[tuple[str, str], float | None]
    """(arm, criterion) -> standard deviation between judge runs of one answer, pooled over answers; None when no answer has two valid
    runs."""

    @property
    def cluster_count(self) -> int:
        """How many clusters the items have."""
        return len(self.cluster_names)


_Cell = tuple[int, int, int]
"""Contestant, item, sample."""


def score_table(items: Sequence[Item], contestants: Sequence[Contestant], judgements: Iterable[Judgement]) -> ScoreTable:
    """Average judgements over runs, then over samples.

    Raises ValueError for an item or contestant that is listed twice, and for a judgement of one that is not listed or that is there twice.
    """
    item_index = _index([item.id for item in items], "item")
    contestant_index = _index([contestant.id for contestant in contestants], "contestant")
    runs: dict[str, dict[_Cell, list[float]]] = defaultdict(lambda: defaultdict(list))
    metrics: dict[str, dict[_Cell, list[float]]] = defaultdict(lambda: defaultdict(list))
    asked: Counter[tuple[int, str]] = Counter()
    failed: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    seen: set[tuple[_Cell, str, int]] = set()
    for judgement in judgements:
        try:
            cell = (contestant_index[judgement.contestant], item_index[judgement.item], judgement.sample)
        except KeyError as unknown:
            raise ValueError(
                f"a judgement names {unknown}, which is not among the contestants and items: judge and analyse the same run"
            ) from None
        key = (cell, judgement.criterion, judgement.run)
        if key in seen:
            raise ValueError(
                f"run {judgement.run} on {judgement.criterion} of {judgement.contestant}, item {judgement.item}, is there twice: keep one"
            )
        seen.add(key)
        asked[cell[0], judgement.criterion] += 1
        scored = runs[judgement.criterion]
        if judgement.score is None:
            failed[cell[0], judgement.criterion][judgement.error or "no score"] += 1
        else:
            scored[cell].append(judgement.score)
        for metric in judgement.metrics:
            metrics[metric.name][cell].append(metric.value)
    arms: dict[str, list[int]] = defaultdict(list)
    for index, contestant in enumerate(contestants):
        arms[contestant.arm].append(index)
    for rows in arms.values():
        rows.sort(key=lambda index: (contestants[index].seed is not None, contestants[index].seed or 0))
    shape = (len(contestants), len(items))
    by_criterion = {criterion: _averages(cells, shape) for criterion, cells in runs.items()}
    by_metric = {name: _averages(cells, shape) for name, cells in metrics.items()}
    scores = {(arm, criterion): values[rows] for arm, rows in arms.items() for criterion, values in by_criterion.items()}
    run_noise = {criterion: _run_noise(cells, len(contestants)) for criterion, cells in runs.items()}
    names = tuple(sorted({item.cluster for item in items}))
    position = {name: index for index, name in enumerate(names)}
    return ScoreTable(
        items=tuple(item_index),
        clusters=np.array([position[item.cluster] for item in items], dtype=np.intp),
        cluster_names=names,
        arms={arm: tuple(contestants[row] for row in rows) for arm, rows in arms.items()},
        criteria=tuple(by_criterion),
        metrics=tuple(by_metric),
        scores=scores,
        metric_values={(arm, name): values[rows] for arm, rows in arms.items() for name, values in by_metric.items()},
        missing={
            (arm, criterion): _missing(rows, criterion, scores[arm, criterion], asked, failed)
            for arm, rows in arms.items()
            for criterion in by_criterion
        },
        judge_sd={
            (arm, criterion): _pooled_sd([noise[row] for row in rows])
            for arm, rows in arms.items()
            for criterion, noise in run_noise.items()
        },
    )


def _index(ids: Sequence[str], what: str) -> dict[str, int]:
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} is listed twice: give each {what} its own id")
    return {name: index for index, name in enumerate(ids)}


def _averages(cells: Mapping[_Cell, list[float]], shape: tuple[int, int]) -> Floats:
    total, count = np.zeros(shape), np.zeros(shape)
    # Summed exactly and sample by sample in order, so that no digit depends on the order in which judgements were made.
    for (contestant, item, _), values in sorted(cells.items()):
        if values:
            total[contestant, item] += math.fsum(values) / len(values)
            count[contestant, item] += 1
    averages: Floats = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return averages


def _missing(
    rows: Sequence[int], criterion: str, scores: Floats, asked: Counter[tuple[int, str]], failed: Mapping[tuple[int, str], Counter[str]]
) -> Missing:
    reasons: Counter[str] = sum((failed.get((row, criterion), Counter()) for row in rows), Counter())
    ordered = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    items = int(np.isnan(scores).all(axis=0).sum())
    return Missing(sum(asked[row, criterion] for row in rows), reasons.total(), items, tuple(ordered))


def _run_noise(cells: Mapping[_Cell, list[float]], contestants: int) -> list[tuple[float, int]]:
    """Of each contestant: sum of squared deviations of the runs from their answer's mean, and its degrees of freedom."""
    squares: list[list[float]] = [[] for _ in range(contestants)]
    dofs = [0] * contestants
    for (contestant, _, _), values in cells.items():
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            squares[contestant].extend((value - mean) ** 2 for value in values)
            dofs[contestant] += len(values) - 1
    return [(math.fsum(found), dof) for found, dof in zip(squares, dofs, strict=True)]


def _pooled_sd(noise: Sequence[tuple[float, int]]) -> float | None:
    dof = sum(own for _, own in noise)
    return math.sqrt(math.fsum(squares for squares, _ in noise) / dof) if dof else None
