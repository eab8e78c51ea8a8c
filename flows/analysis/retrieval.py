"""How well the snapshot's passages match the gold ones: recall, reciprocal rank and nDCG by ir_measures. Knows no arms: all share one
retrieval.

Measures: recall@k (share of the gold passages in the first k), MRR@k (1 / rank of the first gold passage, 0 beyond k; Voorhees 1999,
TREC-8), nDCG@k (Jarvelin & Kekalainen 2002, ACM TOIS 20(4); gains as judged, linear as in trec_eval; a gold passage's is 1). Items without
gold passages are left out and counted; an item with gold and no hit scores 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from ir_measures import RR, Qrel, R, ScoredDoc, nDCG

from flows.analysis.bootstrap import Interval
from flows.analysis.paired import estimates, mean_statistic
from flows.analysis.quantiles import Floats, Ints
from flows.records import Hit, Item


@dataclass(frozen=True, slots=True)
class RetrievalMetric:
    """Mean over items with gold passages. `name` is recall, mrr or ndcg; `k` the depth."""

    name: str
    k: int
    mean: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class RetrievalItem:
    """The measures of one item, in the order of `RetrievalQuality.metrics`."""

    item: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RetrievalQuality:
    """Retrieval over all items with gold passages; `without_gold` counts the others."""

    metrics: tuple[RetrievalMetric, ...]
    items: tuple[RetrievalItem, ...]
    without_gold: int


_FAMILIES = {"recall": R, "mrr": RR, "ndcg": nDCG}


def retrieval_quality(
    items: Sequence[Item],
    hits: Iterable[Hit],
    gold: Mapping[str, tuple[str, ...]],
    *,
    depths: Sequence[int] = (1, 3, 5, 10),
    alpha: float = 0.05,
    draws: int = 10_000,
    seed: int = 0,
) -> RetrievalQuality | None:
    """Measure the hits at each of `depths` that they reach, and at their full depth. None when no item has gold passages or there are no
    hits."""
    judged = [item for item in items if gold.get(item.id)]
    found = sorted(hits, key=lambda hit: hit.rank)
    if not judged or not found:
        return None
    ranked: dict[str, list[str]] = defaultdict(list)
    for hit in found:
        ranked[hit.item].append(hit.passage)
    deepest = found[-1].rank
    ks = sorted({k for k in depths if k <= deepest} | {deepest})
    gains = {item.id: dict.fromkeys(gold[item.id], 1) for item in judged}
    names, values = measured([item.id for item in judged], ranked, gains, ks)
    clusters, count = cluster_numbers(judged)
    statistics = [mean_statistic(line[None], clusters, count) for line in values]
    metrics = [
        RetrievalMetric(name, k, float(line.mean()), estimate.interval(alpha) if estimate else None)
        for (name, k), line, estimate in zip(names, values, estimates(statistics, draws, seed), strict=True)
    ]
    per_item = [RetrievalItem(item.id, tuple(float(value) for value in values[:, index])) for index, item in enumerate(judged)]
    return RetrievalQuality(tuple(metrics), tuple(per_item), len(items) - len(judged))


def measured(
    items: Sequence[str], ranked: Mapping[str, Sequence[str]], gains: Mapping[str, Mapping[str, int]], depths: Sequence[int]
) -> tuple[list[tuple[str, int]], Floats]:
    """Every measure at every depth: their names, and the values as (measure, item). `ranked` holds what was found for an item, best first;
    `gains` what is relevant to it and how much (0 or below is not)."""
    wanted = [(name, k, measure @ k) for name, measure in _FAMILIES.items() for k in depths]
    qrels = [Qrel(item, name, max(0, gain)) for item in items for name, gain in gains[item].items()]
    # Ranks stand in for scores, so that ties in score keep the order in which the passages were shown.
    deepest = max(depths)
    run = [ScoredDoc(item, name, -float(rank)) for item in items for rank, name in enumerate(ranked.get(item, ())[:deepest], 1)]
    row = {str(measure): index for index, (_, _, measure) in enumerate(wanted)}
    column = {item: index for index, item in enumerate(items)}
    values: Floats = np.zeros((len(wanted), len(items)))
    if not run:
        return [(name, k) for name, k, _ in wanted], values
    for result in ir_measures.iter_calc([measure for _, _, measure in wanted], qrels, run):
        values[row[str(result.measure)], column[result.query_id]] = result.value
    return [(name, k) for name, k, _ in wanted], values


def cluster_numbers(items: Sequence[Item]) -> tuple[Ints, int]:
    """The cluster of each item, counted from 0, and how many there are."""
    names = {name: index for index, name in enumerate(sorted({item.cluster for item in items}))}
    return np.array([names[item.cluster] for item in items], dtype=np.intp), len(names)
