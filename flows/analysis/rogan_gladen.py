"""The share of answers that people would call good, from a judge that errs. Knows yes and no, no scale and no files.

Rogan & Gladen 1978, American Journal of Epidemiology 107(1): of the answers a share q gets the judge's yes. With its sensitivity Se (yes to
what people call good) and specificity Sp (no to what they do not), both from labelled answers,

    p = (q + Sp - 1) / (Se + Sp - 1)
    Var p = (Var q + p^2 Var Se + (1 - p)^2 Var Sp) / (Se + Sp - 1)^2

which is the delta method with independent samples. Here labelled answers are among those that q counts, and answers of one cluster are
alike; so each cluster's part in the error is taken instead, (q_g - p Se_g + (1 - p) Sp_g) / (Se + Sp - 1), and their squares are summed,
each with the factor G/(G-1) of its sample. Without clusters and overlap that is the formula above. Two arms differ by p - p', whose parts
are the differences of the clusters' parts, so what both arms share drops out.

Shares are cut at 0 and 1, as Rogan and Gladen do; a difference is of the shares before they are cut. The interval is of Student's t. It
leans on large numbers: with a handful of labelled answers of one kind, or Se and Sp of exactly 1, it is too narrow (Lang & Reiczigel 2014,
Preventive Veterinary Medicine 113(1)); `yes` and `no` say how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.bootstrap import Interval, fewest_clusters
from flows.analysis.clustered import RatioMean, ratio_mean, satterthwaite
from flows.analysis.quantiles import Floats, Ints, t_quantile


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Yes (1) or no (0) of each answer of one arm; `human` is NaN where no one labelled it. `clusters` holds each answer's cluster."""

    judge: Floats
    human: Floats
    weights: Floats
    """Inverse of the chance with which an answer was drawn for labelling; all 1 where it was the same for all."""
    clusters: Ints
    cluster_count: int


@dataclass(frozen=True, slots=True)
class Share:
    """A share of good answers, or a difference of two. Numbers are None where the labels cannot give them; `reason` then says why."""

    value: float | None
    standard_error: float | None
    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """One arm: what the judge says, how it errs, and what follows. `yes` and `no` count labelled answers by what people said."""

    apparent: float | None
    sensitivity: float | None
    specificity: float | None
    yes: int
    no: int
    raw: float | None
    """The share before it is cut at 0 and 1."""
    parts: Floats
    """Each cluster's part in its error; the factor G/(G-1) is in them."""
    labelled_clusters: frozenset[int]
    reason: str

    def share(self, alpha: float, seeds: Sequence[tuple[float, float]] = ()) -> Share:
        """The corrected share with its interval at 1 - alpha. `seeds`: what training seeds add to the variance of `apparent`."""
        if self.raw is None:
            return Share(None, None, None, self.reason)
        found = _share(self.raw, self.parts, len(self.labelled_clusters), alpha, self.widened(seeds))
        ends = found.interval
        cut = None if ends is None else Interval(_cut(ends.low), _cut(ends.high), ends.level)
        return Share(_cut(self.raw), found.standard_error, cut, found.reason)

    def widened(self, seeds: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
        """Variances of the apparent share as variances of the corrected one."""
        youden = (self.sensitivity or 0.0) + (self.specificity or 0.0) - 1
        return tuple((variance / youden**2, dof) for variance, dof in seeds)


def rogan_gladen(answers: Answers) -> Corrected:
    """The corrected share of one arm, with what each cluster adds to its error."""

    def mean(values: Floats, weights: Floats) -> RatioMean | None:
        return ratio_mean(values, weights, answers.clusters, answers.cluster_count)

    scored = ~np.isnan(answers.judge)
    good, bad = (scored & (answers.human == said) for said in (1, 0))
    apparent = mean(answers.judge, np.ones_like(answers.judge))
    sensitivity = mean(np.where(good, answers.judge, np.nan), answers.weights)
    specificity = mean(np.where(bad, 1 - answers.judge, np.nan), answers.weights)
    raw, parts, reason = None, np.zeros(answers.cluster_count), ""
    if apparent is None:
        reason = "the judge scored none of its answers"
    elif sensitivity is None or specificity is None:
        reason = f"no labelled answer is {'good' if sensitivity is None else 'bad'} to people: label more"
    elif (youden := sensitivity.value + specificity.value - 1) <= 0:
        reason = "the judge's yes and no do not follow people's (sensitivity + specificity is at most 1)"
    else:
        raw = (apparent.value + specificity.value - 1) / youden
        parts = (apparent.parts - raw * sensitivity.parts + (1 - raw) * specificity.parts) / youden
    return Corrected(
        apparent=None if apparent is None else apparent.value,
        sensitivity=None if sensitivity is None else sensitivity.value,
        specificity=None if specificity is None else specificity.value,
        yes=int(good.sum()),
        no=int(bad.sum()),
        raw=raw,
        parts=parts,
        labelled_clusters=frozenset(answers.clusters[good | bad].tolist()),
        reason=reason,
    )


def share_difference(arm: Corrected, control: Corrected, alpha: float, seeds: Sequence[tuple[float, float]] = ()) -> Share:
    """Arm minus control, of the same clusters. `seeds`: what training seeds add, already `widened`."""
    if arm.raw is None or control.raw is None:
        return Share(None, None, None, arm.reason or control.reason)
    clusters = min(len(arm.labelled_clusters), len(control.labelled_clusters))
    return _share(arm.raw - control.raw, arm.parts - control.parts, clusters, alpha, seeds)


def _share(value: float, parts: Floats, clusters: int, alpha: float, seeds: Sequence[tuple[float, float]]) -> Share:
    if clusters < 2:
        return Share(value, None, None, "labels are of one cluster")
    variance = float(parts @ parts)
    total = variance + sum(added for added, _ in seeds)
    if clusters < fewest_clusters(alpha):
        return Share(value, math.sqrt(total), None, f"labels are of {clusters} clusters, {fewest_clusters(alpha)} are needed at this level")
    half = t_quantile(1 - alpha / 2, satterthwaite(((variance, clusters - 1), *seeds))) * math.sqrt(total)
    return Share(value, math.sqrt(total), Interval(value - half, value + half, 1 - alpha))


def _cut(share: float) -> float:
    return min(1.0, max(0.0, share))
