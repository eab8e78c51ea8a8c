"""Contrasts as people would have scored them, beside the judge's own, with verdicts by the same rules. Knows labels in arrays, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.bootstrap import fewest_clusters
from flows.analysis.contrasts import Contrast, contrasts
from flows.analysis.human_scores import ArmLabels, Places
from flows.analysis.paired import over_seeds, paired_statistic
from flows.analysis.prediction_powered import Corrected, prediction_powered
from flows.analysis.quantiles import t_cdf
from flows.analysis.scores import ScoreTable
from flows.analysis.settings import AnalysisSettings
from flows.analysis.verdict import PValues, Reading, Verdict, effect, holm, read_interval, read_p_values, sentence


@dataclass(frozen=True, slots=True)
class CorrectedContrast:
    """An arm minus the control. `judged` is the trial's own contrast, by the judge alone; `people` the labelled pairs alone; `corrected`
    both together (PPI++), of which `verdict` is; `bias` the mean error of the judge's difference."""

    arm: str
    control: str
    criterion: str
    primary: bool
    verdict: Verdict
    below_control: bool
    sentence: str
    notes: tuple[str, ...]
    judged: Contrast
    people: Corrected
    corrected: Corrected
    bias: Corrected


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    judged: Contrast
    labels: ArmLabels
    people: Corrected
    corrected: Corrected
    bias: Corrected
    notes: tuple[str, ...]


def corrected_contrasts(
    table: ScoreTable, labels: Mapping[tuple[str, str], ArmLabels], places: Places, settings: AnalysisSettings
) -> tuple[CorrectedContrast, ...]:
    """Every contrast of the trial of which an item has labels of both arms, in the trial's order: the primary first."""
    found = [
        _found(table, labels[one.arm, one.criterion], labels[one.control, one.criterion], places, one, alpha=settings.alpha)
        for one in contrasts(table, settings)
        if (one.arm, one.criterion) in labels and (one.control, one.criterion) in labels
    ]
    found = [one for one in found if one.labels.answers]
    secondary = holm([_p_values(one.corrected, settings.margin) for one in found if not one.judged.primary])
    adjusted = iter(secondary)
    return tuple(
        _read(
            one,
            read_interval(one.corrected.interval, settings.margin) if one.judged.primary else read_p_values(next(adjusted), settings.alpha),
            settings,
        )
        for one in found
    )


def _found(table: ScoreTable, arm: ArmLabels, control: ArmLabels, places: Places, judged: Contrast, *, alpha: float) -> _Found:
    one, other = (table.scores[name, judged.criterion] for name in (judged.arm, judged.control))
    layers = paired_statistic(one, other, table.clusters, table.cluster_count)
    seeds = tuple(zip(layers.variances[1:], layers.dofs[1:], strict=True))
    both = arm.minus(control)
    known = both.beside(over_seeds(one) - over_seeds(other), places)
    corrected = prediction_powered(known, alpha, seeds=seeds)
    return _Found(
        judged,
        both,
        prediction_powered(known, alpha, power=0.0, seeds=seeds),
        corrected,
        prediction_powered(both.errors(places), alpha, power=0.0),
        _notes(table, judged, (arm, control), both, corrected, alpha=alpha),
    )


def _notes(
    table: ScoreTable,
    judged: Contrast,
    sides: Sequence[ArmLabels],
    both: ArmLabels,
    corrected: Corrected,
    *,
    alpha: float,
) -> tuple[str, ...]:
    notes = []
    if corrected.interval is None:
        notes.append(
            f"no interval: labels of both arms are of {corrected.clusters} clusters, {fewest_clusters(alpha)} are needed at this level"
        )
    one_sided = sum(int((~np.isnan(side.human) & np.isnan(both.human)).sum()) for side in sides)
    if one_sided:
        notes.append(f"items left out because only one of the two arms is labelled: {one_sided}")
    for arm in (judged.arm, judged.control):
        trained = {contestant.id for contestant in table.arms[arm]}
        if missing := sorted(trained - both.contestants):
            notes.append(f"no labels of {', '.join(missing)}: the judge's error is taken to be that of the other trainings of {arm}")
    if corrected.power == 0 and corrected.rest and corrected.interval:
        notes.append("the judge's scores tell nothing of people's here (power 0): the figure rests on the labels alone")
    return tuple(notes)


def _p_values(found: Corrected, margin: float) -> PValues | None:
    """The three tests that agree with the interval, with the floor of `flows.analysis.bootstrap`."""
    if found.interval is None or found.value is None:
        return None
    value, error, dof, floor = found.value, found.standard_error or 0.0, found.dof or 1.0, 2.0**-found.clusters

    def above(distance: float) -> float:
        t = distance / error if error > 0 else float(np.copysign(np.inf, distance)) if distance else 0.0
        return max(t_cdf(-t, dof), floor)

    return PValues(above(value), above(-value), above(value + margin))


def _read(found: _Found, reading: Reading, settings: AnalysisSettings) -> CorrectedContrast:
    judged, corrected = found.judged, found.corrected
    return CorrectedContrast(
        arm=judged.arm,
        control=judged.control,
        criterion=judged.criterion,
        primary=judged.primary,
        verdict=reading.verdict,
        below_control=reading.below_control,
        sentence=sentence(
            reading,
            arm=judged.arm,
            control=judged.control,
            criterion=judged.criterion,
            effect=effect(corrected.value, corrected.interval, settings.margin),
            scale=settings.scale,
            margin=settings.margin,
            items=judged.items,
            seeds=judged.arm_seeds,
            remark=f"as people score, from {corrected.labelled} labelled pairs",
        ),
        notes=found.notes,
        judged=judged,
        people=found.people,
        corrected=corrected,
        bias=found.bias,
    )
