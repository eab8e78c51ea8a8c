"""Every arm against the control on every criterion: difference, interval, p values, verdict, sentence. Knows score tables, no records.

The same table and settings give the same contrasts; a contrast does not change when other arms are added, except through the correction
for their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flows.analysis.bootstrap import Estimate, Interval, fewest_clusters
from flows.analysis.paired import Statistic, estimates, over_seeds, paired_statistic
from flows.analysis.power import Need, detectable, needed
from flows.analysis.scores import ScoreTable
from flows.analysis.settings import AnalysisSettings
from flows.analysis.summary import training_seeds
from flows.analysis.verdict import PValues, Reading, Verdict, effect, holm, p_values, read_interval, read_p_values, sentence


@dataclass(frozen=True, slots=True)
class Contrast:
    """An arm minus the control on one criterion, over the items that both answered. Numbers are None where the data cannot give them.

    `interval` is at 1 - alpha, for this contrast alone. `simultaneous` is wider (Bonferroni over the secondary contrasts): all of them
    hold together. For the primary contrast they are equal. p values carry Holm's correction where named `_adjusted`; for the primary they
    equal the plain ones. `p_value` is two-sided for "no difference", `p_non_inferior` one-sided for "worse by the margin or more", to be
    held against alpha / 2.
    """

    arm: str
    control: str
    criterion: str
    primary: bool
    verdict: Verdict
    below_control: bool
    sentence: str
    short: str
    notes: tuple[str, ...]
    difference: float | None
    standard_error: float | None
    interval: Interval | None
    simultaneous: Interval | None
    p_value: float | None
    p_value_adjusted: float | None
    p_non_inferior: float | None
    p_non_inferior_adjusted: float | None
    items: int
    items_dropped: int
    clusters: int
    arm_seeds: int
    control_seeds: int
    items_above: int
    items_equal: int
    items_below: int
    need: Need | None
    detectable: float | None


@dataclass(frozen=True, slots=True)
class ItemDifference:
    """One item's difference in the primary contrast; None where an arm has no score."""

    item: str
    arm: float | None
    control: float | None
    difference: float | None


def contrasts(table: ScoreTable, settings: AnalysisSettings) -> tuple[Contrast, ...]:
    """All contrasts with the control, the primary one first."""
    first = (settings.primary.arm, settings.primary.criterion)
    pairs = [(arm, criterion) for criterion in table.criteria for arm in table.arms if arm != settings.control]
    pairs = [first, *(pair for pair in pairs if pair != first)]
    statistics = [
        paired_statistic(table.scores[pair], table.scores[settings.control, pair[1]], table.clusters, table.cluster_count) for pair in pairs
    ]
    found = estimates(statistics, settings.bootstrap, settings.seed)
    raw = [None if estimate is None else p_values(estimate, settings.margin) for estimate in found]
    adjusted = (raw[0], *holm(raw[1:]))
    level = settings.alpha / max(1, len(pairs) - 1)
    rows = zip(pairs, statistics, found, raw, adjusted, strict=True)
    return tuple(
        _contrast(
            table,
            settings,
            pair,
            statistic=statistic,
            estimate=estimate,
            plain=plain,
            adjusted=corrected,
            primary=pair == first,
            level=settings.alpha if pair == first else level,
        )
        for pair, statistic, estimate, plain, corrected in rows
    )


def _contrast(
    table: ScoreTable,
    settings: AnalysisSettings,
    pair: tuple[str, str],
    *,
    statistic: Statistic,
    estimate: Estimate | None,
    plain: PValues | None,
    adjusted: PValues | None,
    primary: bool,
    level: float,
) -> Contrast:
    arm, criterion = pair
    interval = estimate.interval(settings.alpha) if estimate else None
    alone = read_interval(interval, settings.margin)
    reading = alone if primary else read_p_values(adjusted, settings.alpha)
    need = needed(statistic, settings.margin, level, settings.power) if reading.verdict is Verdict.INCONCLUSIVE else None
    shown = effect(statistic.mean, interval, settings.margin)
    # Means over seeds and runs carry float noise: a tie is a tie to 9 decimals.
    differences = np.round(statistic.values[~np.isnan(statistic.values)], 9)
    seeds = len(training_seeds(table.arms[arm]))
    return Contrast(
        arm=arm,
        control=settings.control,
        criterion=criterion,
        primary=primary,
        verdict=reading.verdict,
        below_control=reading.below_control,
        sentence=sentence(
            reading,
            arm=arm,
            control=settings.control,
            criterion=criterion,
            effect=shown,
            scale=settings.scale,
            margin=settings.margin,
            items=statistic.items,
            seeds=seeds,
            remark=need.reason if need else "",
        ),
        short=f"{arm} {reading.verdict.replace('_', '-')} {shown}",
        notes=_notes(table, settings, statistic, arm, interval=interval, alone=alone, reading=reading),
        difference=statistic.mean,
        standard_error=statistic.standard_error,
        interval=interval,
        simultaneous=estimate.interval(level) if estimate else None,
        p_value=plain.difference if plain else None,
        p_value_adjusted=adjusted.difference if adjusted else None,
        p_non_inferior=plain.non_inferior if plain else None,
        p_non_inferior_adjusted=adjusted.non_inferior if adjusted else None,
        items=statistic.items,
        items_dropped=statistic.dropped,
        clusters=statistic.clusters,
        arm_seeds=seeds,
        control_seeds=len(training_seeds(table.arms[settings.control])),
        items_above=int((differences > 0).sum()),
        items_equal=int((differences == 0).sum()),
        items_below=int((differences < 0).sum()),
        need=need,
        detectable=detectable(statistic, level, settings.power),
    )


def _notes(
    table: ScoreTable,
    settings: AnalysisSettings,
    statistic: Statistic,
    arm: str,
    *,
    interval: Interval | None,
    alone: Reading,
    reading: Reading,
) -> tuple[str, ...]:
    """What a reader must know beside the verdict."""
    notes = []
    if interval is None:
        needed_clusters = fewest_clusters(settings.alpha)
        notes.append(f"no interval: {statistic.clusters} clusters with paired items, {needed_clusters} are needed at this level")
    elif statistic.standard_error == 0:
        notes.append("every item gave the same difference")
    if statistic.dropped:
        notes.append(f"items dropped because one of the two has no score: {statistic.dropped}")
    for name in (arm, settings.control):
        seeds = len(training_seeds(table.arms[name]))
        if seeds == 1:
            notes.append(f"{name} was trained once: how much another training would differ is not in the interval")
        if seeds == 2:
            notes.append(
                f"{name} was trained twice: two seeds measure the spread between trainings poorly, and the interval may be too narrow"
            )
    if alone.verdict is not reading.verdict:
        notes.append(f"{alone.verdict.replace('_', '-')} if it stood alone, not after Holm's correction")
    return tuple(notes)


def item_differences(table: ScoreTable, settings: AnalysisSettings) -> tuple[ItemDifference, ...]:
    """The primary contrast item by item, in the order of `table.items`."""
    arm = over_seeds(table.scores[settings.primary.arm, settings.primary.criterion])
    control = over_seeds(table.scores[settings.control, settings.primary.criterion])
    return tuple(
        ItemDifference(item, _number(one), _number(other), _number(one - other))
        for item, one, other in zip(table.items, arm, control, strict=True)
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
