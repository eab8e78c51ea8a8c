"""How far the scores of an arm moved from one run to another: paired item by item, with the intervals of the analysis. Knows no screen.

A difference is second minus first, over the items that both runs scored, with their clusters (`flows.analysis.paired`). Training seeds
are paired as well where both runs used the very same weights, seed by seed; else they are taken as trained independently of each other,
which is cautious where they are not. p values carry Holm's correction for all arms and criteria that could have moved: an arm with the
same answers and the same scores in both runs did not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flows.analysis.bootstrap import Interval
from flows.analysis.paired import Statistic, estimates, mean_statistic, over_seeds, paired_statistic
from flows.analysis.quantiles import Floats
from flows.analysis.scores import ScoreTable, score_table
from flows.analysis.verdict import PValues, holm, p_values
from flows.errors import UserError
from flows.finished_run import FinishedRun
from flows.records import Answer, Contestant, Item, Judgement

_DRAWS = 10_000
_MOST_CHANGED = 5
_DECIMALS = 9
"""Means over runs carry float noise: a tie is a tie to so many decimals."""


Reading = Literal["higher", "lower", "not told apart", "unmoved"]


@dataclass(frozen=True, slots=True)
class ItemMove:
    """One item's scores in both runs."""

    item: str
    first: float
    second: float
    difference: float


@dataclass(frozen=True, slots=True)
class Move:
    """One arm on one criterion, second run minus first. Numbers are None where the data cannot give them.

    `reading` holds the adjusted p value against alpha; `unmoved` are those left out of the correction, without p values. `seeds_paired`
    says whether both runs used the same weights. `answers_same` counts answers of the same text, of `answers` that both runs have: where
    all are the same, only the judge can have moved.
    """

    arm: str
    criterion: str
    first: float | None
    second: float | None
    difference: float | None
    interval: Interval | None
    p_value: float | None
    p_value_adjusted: float | None
    reading: Reading
    items: int
    items_dropped: int
    clusters: int
    items_above: int
    items_equal: int
    items_below: int
    seeds_paired: bool
    answers: int
    answers_same: int
    most_changed: tuple[ItemMove, ...]


def moves(
    first: FinishedRun, second: FinishedRun, items: Sequence[Item], arms: Sequence[str], criteria: Sequence[str], *, alpha: float
) -> tuple[Move, ...]:
    """Every arm on every criterion, in order. `items` are those that both runs asked."""
    one, other = _table(first, items, arms, criteria), _table(second, items, arms, criteria)
    keys = [(arm, criterion) for arm in arms for criterion in criteria if criterion in one.criteria and criterion in other.criteria]
    paired = {arm: _same_weights(first.report, second.report, arm) for arm in arms}
    statistics = [_statistic(one, other, key, seeds_paired=paired[key[0]]) for key in keys]
    found = estimates(statistics, _DRAWS, 0)
    texts = _texts(first, items), _texts(second, items)
    answers = {arm: _same_answers(*texts, one.arms[arm]) for arm in arms}
    unmoved = [_is_unmoved(statistic, *answers[arm]) for (arm, _), statistic in zip(keys, statistics, strict=True)]
    raw = [None if estimate is None or still else p_values(estimate, 0.0) for estimate, still in zip(found, unmoved, strict=True)]
    adjusted = _adjusted(raw, unmoved)
    return tuple(
        _move(
            (one.scores[key], other.scores[key]),
            one.items,
            key,
            statistic,
            estimate.interval(alpha) if estimate else None,
            plain=plain,
            adjusted=corrected,
            reading="unmoved" if still else _reading(corrected, alpha),
            paired=paired[key[0]],
            answers=answers[key[0]],
        )
        for key, statistic, estimate, plain, corrected, still in zip(keys, statistics, found, raw, adjusted, unmoved, strict=True)
    )


def _adjusted(raw: Sequence[PValues | None], unmoved: Sequence[bool]) -> list[PValues | None]:
    """Holm's correction over what moved; None for what did not."""
    moved = iter(holm([plain for plain, still in zip(raw, unmoved, strict=True) if not still]))
    return [None if still else next(moved) for still in unmoved]


def _is_unmoved(statistic: Statistic, answers: int, answers_same: int) -> bool:
    return 0 < answers == answers_same and not _differences(statistic)[0].any()


def _differences(statistic: Statistic) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """One difference an item, 0 where there is none, and which items have one."""
    used = ~np.isnan(statistic.values)
    return np.where(used, np.round(statistic.values, _DECIMALS), 0.0), used


def _table(run: FinishedRun, items: Sequence[Item], arms: Sequence[str], criteria: Sequence[str]) -> ScoreTable:
    contestants = [one for arm in run.report["arms"] if arm["arm"] in arms for one in _contestants(arm)]
    wanted, answering = {item.id for item in items}, {one.id for one in contestants}
    judgements = [
        row
        for row in run.records("judgements", Judgement)
        if row.item in wanted and row.contestant in answering and row.criterion in criteria
    ]
    try:
        return score_table(items, contestants, judgements)
    except ValueError as error:
        raise UserError(f"{run.folder}: {error}") from None


def _contestants(arm: Mapping[str, Any]) -> list[Contestant]:
    same = {name: arm[name] for name in ("arm", "family", "model", "size", "rag", "shots")}
    return [Contestant(**same, seed=seed) for seed in arm["seeds"]] or [Contestant(**same)]


def _same_weights(first: Mapping[str, Any], second: Mapping[str, Any], arm: str) -> bool:
    ones, others = _weights(first, arm), _weights(second, arm)
    return bool(ones) and ones == others


def _weights(report: Mapping[str, Any], name: str) -> dict[int, str]:
    """Hashes of an arm's weights by seed; empty for one that was not trained."""
    [arm] = [one for one in report["arms"] if one["arm"] == name]
    family = report["settings"]["spec"]["arms"].get(arm["family"], {}).get("adapter")
    return {
        one["seed"]: one["weights_sha256"] for one in report["adapters"] if family and (one["family"], one["size"]) == (family, arm["size"])
    }


def _statistic(one: ScoreTable, other: ScoreTable, key: tuple[str, str], *, seeds_paired: bool) -> Statistic:
    before, after = one.scores[key], other.scores[key]
    if seeds_paired:
        return mean_statistic(after - before, one.clusters, one.cluster_count)
    return paired_statistic(after, before, one.clusters, one.cluster_count)


def _texts(run: FinishedRun, items: Sequence[Item]) -> dict[tuple[str, str, int], str | None]:
    wanted = {item.id for item in items}
    return {(row.contestant, row.item, row.sample): row.text for row in run.records("answers", Answer) if row.item in wanted}


_Texts = Mapping[tuple[str, str, int], str | None]


def _same_answers(first: _Texts, second: _Texts, contestants: Sequence[Contestant]) -> tuple[int, int]:
    own = {one.id for one in contestants}
    both = [key for key in first if key[0] in own and key in second]
    return len(both), sum(first[key] == second[key] for key in both)


def _move(
    scores: tuple[Floats, Floats],
    items: Sequence[str],
    key: tuple[str, str],
    statistic: Statistic,
    interval: Interval | None,
    *,
    plain: PValues | None,
    adjusted: PValues | None,
    reading: Reading,
    paired: bool,
    answers: tuple[int, int],
) -> Move:
    before, after = (over_seeds(values) for values in scores)
    values, used = _differences(statistic)
    return Move(
        arm=key[0],
        criterion=key[1],
        first=_mean(before[used]),
        second=_mean(after[used]),
        difference=statistic.mean,
        interval=interval,
        p_value=plain.difference if plain else None,
        p_value_adjusted=adjusted.difference if adjusted else None,
        reading=reading,
        items=statistic.items,
        items_dropped=int((~used & ~(np.isnan(before) & np.isnan(after))).sum()),
        clusters=statistic.clusters,
        items_above=int((values > 0).sum()),
        items_equal=int((values[used] == 0).sum()),
        items_below=int((values < 0).sum()),
        seeds_paired=paired,
        answers=answers[0],
        answers_same=answers[1],
        most_changed=_most_changed(items, before, after, values),
    )


def _reading(adjusted: PValues | None, alpha: float) -> Reading:
    if adjusted is not None and adjusted.better < alpha / 2:
        return "higher"
    if adjusted is not None and adjusted.worse < alpha / 2:
        return "lower"
    return "not told apart"


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _most_changed(items: Sequence[str], before: Floats, after: Floats, values: Floats) -> tuple[ItemMove, ...]:
    changed = [(place, float(value)) for place, value in enumerate(values) if value != 0]
    changed.sort(key=lambda entry: (-abs(entry[1]), items[entry[0]]))
    return tuple(ItemMove(items[place], float(before[place]), float(after[place]), value) for place, value in changed[:_MOST_CHANGED])
