"""Scores of people beside the judge's, of the same answers, arranged by arm and item. Knows no statistics beyond averaging."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.prediction_powered import Labelled
from flows.analysis.quantiles import Floats, Ints
from flows.records import Contestant, Judgement

Answered = tuple[str, str, int]
"""Contestant, item, sample."""


@dataclass(frozen=True, slots=True)
class HumanScore:
    """What people gave one answer on one criterion: `scores` by who gave it."""

    contestant: str
    item: str
    sample: int
    criterion: str
    scores: Mapping[str, float]
    probability: float | None = None
    """Chance with which the item was drawn for labelling; None where it was the same for all."""

    @property
    def answer(self) -> Answered:
        """Which answer."""
        return self.contestant, self.item, self.sample

    @property
    def mean(self) -> float:
        """Over people."""
        return math.fsum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where items stand in arrays, and their clusters."""

    items: Mapping[str, int]
    clusters: Ints
    cluster_count: int


@dataclass(frozen=True, slots=True, eq=False)
class ArmLabels:
    """Labels of one arm on one criterion. `human` and `judge` hold one number an item, of the same answers, NaN where none is labelled."""

    human: Floats
    judge: Floats
    weights: Floats
    even: bool
    """Whether all items were drawn with the same chance."""
    answers: int
    unjudged: int
    contestants: frozenset[str]

    def minus(self, other: ArmLabels) -> ArmLabels:
        """Item by item, where both have labels."""
        human = self.human - other.human
        both = int((~np.isnan(human)).sum())
        return ArmLabels(human, self.judge - other.judge, self.weights, self.even, both, 0, frozenset(self.contestants | other.contestants))

    def beside(self, judged: Floats, places: Places) -> Labelled:
        """With the judge's scores of the other items. `judged` holds one number an item, over all answers of the arm."""
        rest = np.where(np.isnan(self.human), judged, np.nan) if self.even else judged
        return Labelled(self.human, self.judge, rest, self.weights, places.clusters, places.cluster_count)

    def errors(self, places: Places) -> Labelled:
        """What the judge gave too much, as something to take the mean of."""
        wrong = self.judge - self.human
        return Labelled(wrong, wrong, np.full_like(wrong, np.nan), self.weights, places.clusters, places.cluster_count)


def judge_scores(judgements: Iterable[Judgement]) -> dict[str, dict[Answered, float]]:
    """The judge's score of each answer by criterion: the mean of the runs that gave one. Answers without any are not there."""
    runs: dict[str, dict[Answered, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in judgements:
        if one.score is not None:
            runs[one.criterion][one.contestant, one.item, one.sample].append(one.score)
    return {
        criterion: {answer: math.fsum(scores) / len(scores) for answer, scores in answers.items()} for criterion, answers in runs.items()
    }


def arm_labels(
    labels: Sequence[HumanScore], contestants: Sequence[Contestant], judge: Mapping[Answered, float], places: Places
) -> ArmLabels:
    """The labels of an arm: over samples, then over training seeds. `labels` are of one criterion; those of other arms are left alone."""
    names = {contestant.id for contestant in contestants}
    own = [label for label in labels if label.contestant in names]
    judged = [label for label in own if label.answer in judge]
    samples: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for label in judged:
        samples[label.item, label.contestant].append((label.mean, judge[label.answer]))
    seeds: dict[str, list[Floats]] = defaultdict(list)
    for (item, _), pairs in sorted(samples.items()):
        seeds[item].append(np.mean(pairs, axis=0))
    scores = np.full((2, len(places.items)), np.nan)
    for item, means in seeds.items():
        scores[:, places.items[item]] = np.mean(means, axis=0)
    weights = item_weights(labels, places)
    return ArmLabels(
        human=scores[0],
        judge=scores[1],
        weights=weights,
        even=all(label.probability is None for label in labels),
        answers=len(judged),
        unjudged=len(own) - len(judged),
        contestants=frozenset(label.contestant for label in judged),
    )


def item_weights(labels: Iterable[HumanScore], places: Places) -> Floats:
    """Inverse of the chance with which each item was drawn; 1 where nothing is said."""
    weights = np.ones(len(places.items))
    for label in labels:
        if label.probability is not None:
            weights[places.items[label.item]] = 1 / label.probability
    return weights
