"""What labels of people say about a trial's judge, and its contrasts as people would have scored them. Knows records, no files.

The judge's score of an answer is the mean of its runs, the people's the mean of those who scored it. An item counts once for each arm, as
in the trial's own analysis: means over samples, then over training seeds. Training seeds add their variance, taken from the judge's
scores, for nobody labels enough answers of each seed to measure it. Verdicts follow the rules of `flows.analysis.verdict`: the primary
contrast by its interval, the others by Holm's correction over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.agreement import Agreement, Annotators, agreement, annotators
from flows.analysis.corrected_contrasts import CorrectedContrast, corrected_contrasts
from flows.analysis.human_scores import Answered, ArmLabels, HumanScore, Places, arm_labels, judge_scores
from flows.analysis.paired import mean_statistic, over_seeds
from flows.analysis.prediction_powered import Corrected, prediction_powered
from flows.analysis.quantiles import Floats, Ints
from flows.analysis.scores import ScoreTable, score_table
from flows.analysis.settings import AnalysisSettings
from flows.analysis.shares import ArmShare, shares
from flows.records import Contestant, Item, Judgement


@dataclass(frozen=True, slots=True)
class ArmCalibration:
    """One arm on one criterion. `judge` is the judge's mean over all items, `bias` the judge's mean error (judge minus people) over items
    with a label, `people` the mean of the labels alone, `corrected` both together (PPI++)."""

    arm: str
    answers: int
    """Labelled answers that the judge scored."""
    unjudged: int
    """Labelled answers without a score of the judge: they are left out."""
    judge: float | None
    bias: Corrected
    people: Corrected
    corrected: Corrected


@dataclass(frozen=True, slots=True)
class CriterionCalibration:
    """All about one criterion. `shares` is empty unless a score was named from which an answer is good."""

    criterion: str
    agreement: Agreement
    annotators: Annotators
    arms: tuple[ArmCalibration, ...]
    contrasts: tuple[CorrectedContrast, ...]
    good_from: float | None
    shares: tuple[ArmShare, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Criteria that have labels, in the trial's order. `primary` is the corrected primary contrast, None where nobody labelled its
    criterion; it is also in its criterion's contrasts."""

    labels: int
    primary: CorrectedContrast | None
    criteria: tuple[CriterionCalibration, ...]
    notes: tuple[str, ...]


def calibrate(
    items: Sequence[Item],
    contestants: Sequence[Contestant],
    judgements: Sequence[Judgement],
    labels: Sequence[HumanScore],
    *,
    settings: AnalysisSettings,
    scales: Mapping[str, tuple[int, int]],
    good_from: float | None = None,
) -> Calibration:
    """Hold labels against the judge. `scales` are the ends of each criterion's scale; `good_from` is the score from which an answer counts
    as good, None for criteria of two scores, whose upper one it is.

    Raises ValueError for records that do not fit together, and for labels of items, contestants or criteria that are not among them.
    """
    items = sorted(items, key=lambda item: item.id)
    table = score_table(items, contestants, judgements)
    places = Places({name: place for place, name in enumerate(table.items)}, table.clusters, table.cluster_count)
    _check(labels, table, places)
    judge = judge_scores(judgements)
    by_criterion = {criterion: [label for label in labels if label.criterion == criterion] for criterion in table.criteria}
    made = {
        (arm, criterion): arm_labels(own, members, judge.get(criterion, {}), places)
        for criterion, own in by_criterion.items()
        for arm, members in table.arms.items()
    }
    made = {key: found for key, found in made.items() if found.answers or found.unjudged}
    compared = corrected_contrasts(table, made, places, settings)
    criteria = tuple(
        _criterion(
            table,
            places,
            own,
            judge.get(criterion, {}),
            {arm: found for (arm, of), found in made.items() if of == criterion},
            contrasts=tuple(one for one in compared if one.criterion == criterion),
            settings=settings,
            scale=scales[criterion],
            good_from=_good_from(scales[criterion], good_from),
        )
        for criterion, own in by_criterion.items()
        if own
    )
    primary = next((one for one in compared if one.primary), None)
    return Calibration(len(labels), primary, criteria, _notes(primary, made, settings))


def _check(labels: Sequence[HumanScore], table: ScoreTable, places: Places) -> None:
    known = {contestant.id for members in table.arms.values() for contestant in members}
    for label in labels:
        wrong = [
            f"{what} {name!r}"
            for what, name, names in (
                ("item", label.item, places.items),
                ("contestant", label.contestant, known),
                ("criterion", label.criterion, table.criteria),
            )
            if name not in names
        ]
        if wrong:
            raise ValueError(f"a label names {' and '.join(wrong)}, which the run does not have: label and calibrate the same run")


def _criterion(
    table: ScoreTable,
    places: Places,
    labels: Sequence[HumanScore],
    judge: Mapping[Answered, float],
    arms: Mapping[str, ArmLabels],
    *,
    contrasts: tuple[CorrectedContrast, ...],
    settings: AnalysisSettings,
    scale: tuple[int, int],
    good_from: float | None,
) -> CriterionCalibration:
    criterion, alpha = labels[0].criterion, settings.alpha
    # Ordered, so that the order of rows in a file changes no digit of a resampled interval.
    labels = sorted(labels, key=lambda label: label.answer)
    both = [label for label in labels if label.answer in judge]

    def clusters(of: Sequence[HumanScore]) -> Ints:
        return places.clusters[np.array([places.items[label.item] for label in of], dtype=np.intp)]

    scores = np.array([(judge[label.answer], label.mean) for label in both]).reshape(-1, 2)
    return CriterionCalibration(
        criterion=criterion,
        agreement=agreement(scores[:, 0], scores[:, 1], clusters(both), alpha=alpha, seed=settings.seed, scale=scale),
        annotators=annotators([label.scores for label in labels], clusters(labels), alpha=alpha, seed=settings.seed),
        arms=tuple(_arm(arm, found, table.scores[arm, criterion], places, alpha) for arm, found in arms.items()),
        contrasts=contrasts,
        good_from=good_from,
        shares=()
        if good_from is None
        else shares(
            {arm: table.arms[arm] for arm in arms}, labels, judge, places, good_from=good_from, control=settings.control, alpha=alpha
        ),
    )


def _arm(arm: str, labels: ArmLabels, scores: Floats, places: Places, alpha: float) -> ArmCalibration:
    layers = mean_statistic(scores, places.clusters, places.cluster_count)
    seeds = tuple(zip(layers.variances[1:], layers.dofs[1:], strict=True))
    known = labels.beside(over_seeds(scores), places)
    return ArmCalibration(
        arm=arm,
        answers=labels.answers,
        unjudged=labels.unjudged,
        judge=layers.mean,
        bias=prediction_powered(labels.errors(places), alpha, power=0.0),
        people=prediction_powered(known, alpha, power=0.0, seeds=seeds),
        corrected=prediction_powered(known, alpha, seeds=seeds),
    )


def _good_from(scale: tuple[int, int], named: float | None) -> float | None:
    low, high = scale
    return named if named is not None else float(high) if high - low == 1 else None


def _notes(primary: CorrectedContrast | None, made: Mapping[tuple[str, str], ArmLabels], settings: AnalysisSettings) -> tuple[str, ...]:
    notes = []
    if primary is None:
        arm, criterion = settings.primary.arm, settings.primary.criterion
        notes.append(
            f"the primary contrast has no corrected verdict: no question has labels of both {arm} and {settings.control} on {criterion}"
        )
    if unjudged := sum(found.unjudged for found in made.values()):
        notes.append(f"labelled answers left out because the judge gave them no score: {unjudged}")
    if any(not found.even for found in made.values()):
        notes.append("labels were drawn with unlike chances: means are weighted by their inverse; agreement is that of the answers drawn")
    else:
        notes.append("the figures hold if the labelled questions are a random sample of the trial's")
    return tuple(notes)
