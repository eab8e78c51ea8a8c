"""The share of good answers of each arm, as people would have called them. Knows records; the correction is in `rogan_gladen`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.human_scores import Answered, HumanScore, Places, item_weights
from flows.analysis.paired import mean_statistic
from flows.analysis.quantiles import Floats
from flows.analysis.rogan_gladen import Answers, Corrected, Share, rogan_gladen, share_difference
from flows.records import Contestant


@dataclass(frozen=True, slots=True)
class ArmShare:
    """Good answers of one arm: an answer is good whose score is at least the named one. `difference` is from the control, in shares; None
    for the control itself and where it has no labels. `yes` and `no` count labelled answers by what people said."""

    arm: str
    apparent: float | None
    """By the judge alone."""
    sensitivity: float | None
    specificity: float | None
    yes: int
    no: int
    corrected: Share
    difference: Share | None


@dataclass(frozen=True, slots=True, eq=False)
class _Arm:
    found: Corrected
    seeds: tuple[tuple[float, float], ...]


def shares(
    arms: Mapping[str, Sequence[Contestant]],
    labels: Sequence[HumanScore],
    judge: Mapping[Answered, float],
    places: Places,
    *,
    good_from: float,
    control: str,
    alpha: float,
) -> tuple[ArmShare, ...]:
    """Every arm of `arms` on one criterion, in its order. `labels` and `judge` are of that criterion."""
    weights = item_weights(labels, places)
    people = {label.answer: label.mean for label in labels}
    made = {arm: _arm(contestants, people, judge, places, weights=weights, good_from=good_from) for arm, contestants in arms.items()}
    found = []
    for arm, one in made.items():
        base = made.get(control) if arm != control else None
        difference = None
        if base is not None:
            seeds = (*one.found.widened(one.seeds), *base.found.widened(base.seeds)) if one.found.raw is not None else ()
            difference = share_difference(one.found, base.found, alpha, seeds if base.found.raw is not None else ())
        of = one.found
        share = of.share(alpha, one.seeds)
        found.append(ArmShare(arm, of.apparent, of.sensitivity, of.specificity, of.yes, of.no, share, difference))
    return tuple(found)


def _arm(
    contestants: Sequence[Contestant],
    people: Mapping[Answered, float],
    judge: Mapping[Answered, float],
    places: Places,
    *,
    weights: Floats,
    good_from: float,
) -> _Arm:
    row = {contestant.id: number for number, contestant in enumerate(contestants)}
    answers = sorted(answer for answer in judge if answer[0] in row)
    item = np.array([places.items[answer[1]] for answer in answers], dtype=np.intp)
    yes = np.array([float(judge[answer] >= good_from) for answer in answers])
    human = np.array([float(people[answer] >= good_from) if answer in people else np.nan for answer in answers])
    found = rogan_gladen(Answers(yes, human, weights[item], places.clusters[item], places.cluster_count))
    sums, counts = np.zeros((2, len(row), len(places.items)))
    for answer, place, good in zip(answers, item, yes, strict=True):
        sums[row[answer[0]], place] += good
        counts[row[answer[0]], place] += 1
    by_seed = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    layers = mean_statistic(by_seed, places.clusters, places.cluster_count)
    return _Arm(found, tuple(zip(layers.variances[1:], layers.dofs[1:], strict=True)))
