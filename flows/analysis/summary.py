"""What each arm scored, said and spent: means with intervals, curves over training size, answer length, abstention, tokens, time, money.
Knows no contrasts.

Intervals are those of `bootstrap`: clusters resampled, training seeds as a layer. Latency percentiles interpolate linearly (Hyndman & Fan
1996, type 7).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.analysis.bootstrap import Interval
from flows.analysis.paired import Statistic, estimates, mean_statistic
from flows.analysis.scores import Missing, ScoreTable
from flows.records import Answer, Contestant, Item, Judgement


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over items. `value` is None when no item has a score, `interval` when too few clusters have one."""

    value: float | None
    interval: Interval | None
    items: int
    clusters: int


@dataclass(frozen=True, slots=True)
class SeedMean:
    """The mean of one training seed. `value` is None when it has no scores."""

    seed: int
    value: float | None


@dataclass(frozen=True, slots=True)
class KindMean:
    """The mean over the items of one kind of question; `kind` is "" where the source names none."""

    kind: str
    mean: Mean


@dataclass(frozen=True, slots=True)
class CriterionScore:
    """One arm on one criterion. `seed_sd` is the spread between training seeds beyond the noise of items, `judge_sd` that between judge
    runs of one answer."""

    criterion: str
    mean: Mean
    missing: Missing
    seeds: tuple[SeedMean, ...]
    seed_sd: float | None
    judge_sd: float | None
    kinds: tuple[KindMean, ...]


@dataclass(frozen=True, slots=True)
class MetricScore:
    """One arm on one raw reference metric."""

    metric: str
    mean: Mean


@dataclass(frozen=True, slots=True)
class Abstention:
    """How often an arm declined to answer, of all its answers. A rate is None without such items. `correct` is the share of answers that
    abstained exactly when they should."""

    answerable: int
    unanswerable: int
    rate: float | None
    rate_answerable: float | None
    rate_unanswerable: float | None
    correct: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What an arm's answers took. `answers` counts all, `errors` those without text. Lengths and latency are over those with text, and
    None without any.

    `snapshots` are the names under which a provider answered, each with its answers; none for engines of one's own.
    `truncated` counts answers that ran into the token limit, `cut` those whose prompt lost passages. A cost is the
    sum of the known ones, None when none is known; `unpriced` counts the calls without one, for which the sum is a lower bound.
    """

    answers: int
    errors: int
    error_reasons: tuple[tuple[str, int], ...]
    snapshots: tuple[tuple[str, int], ...]
    truncated: int
    cut: int
    words_mean: float | None
    words_median: float | None
    tokens_mean: float | None
    tokens_median: float | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    unpriced: int
    latency_median_ms: float | None
    latency_p95_ms: float | None
    judge_prompt_tokens: int
    judge_completion_tokens: int
    judge_cost_usd: float | None
    judge_unpriced: int


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """All about one arm. `seeds` is empty for an arm that was not trained."""

    arm: str
    family: str
    model: str
    size: int | None
    seeds: tuple[int, ...]
    rag: bool
    shots: int
    scores: tuple[CriterionScore, ...]
    metrics: tuple[MetricScore, ...]
    abstention: Abstention
    usage: Usage


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One training size of a family."""

    size: int
    arm: str
    mean: Mean
    seeds: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean score over training size, for one family of arms and one criterion; points by ascending size."""

    family: str
    criterion: str
    points: tuple[CurvePoint, ...]


def summaries(
    table: ScoreTable,
    items: Sequence[Item],
    answers: Iterable[Answer],
    judgements: Iterable[Judgement],
    *,
    alpha: float,
    draws: int,
    seed: int,
) -> tuple[ArmSummary, ...]:
    """One summary an arm, in the order of `table.arms`."""
    by_contestant: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_contestant[answer.contestant].append(answer)
    judged: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        judged[judgement.contestant].append(judgement)
    answerable = {item.id: item.answerable for item in items}
    means = _means(table, tuple(item.kind for item in items), alpha, draws, seed)
    made = []
    for arm, contestants in table.arms.items():
        first = contestants[0]
        given = [answer for contestant in contestants for answer in by_contestant[contestant.id]]
        runs = [judgement for contestant in contestants for judgement in judged[contestant.id]]
        made.append(
            ArmSummary(
                arm=arm,
                family=first.family,
                model=first.model,
                size=first.size,
                seeds=training_seeds(contestants),
                rag=first.rag,
                shots=first.shots,
                scores=tuple(_criterion(table, arm, criterion, means) for criterion in table.criteria),
                metrics=tuple(MetricScore(metric, means["metric", arm, metric][1]) for metric in table.metrics),
                abstention=_abstention(given, answerable),
                usage=_usage(given, runs),
            )
        )
    return tuple(made)


def curves(arms: Sequence[ArmSummary]) -> tuple[Curve, ...]:
    """A curve for every family that has a training size and every criterion."""
    points: dict[tuple[str, str], list[CurvePoint]] = defaultdict(list)
    for arm in arms:
        for score in arm.scores:
            if arm.size is not None:
                points[arm.family, score.criterion].append(CurvePoint(arm.size, arm.arm, score.mean, len(arm.seeds)))
    return tuple(
        Curve(family, criterion, tuple(sorted(found, key=lambda point: point.size))) for (family, criterion), found in points.items()
    )


def training_seeds(contestants: Sequence[Contestant]) -> tuple[int, ...]:
    """The training seeds of an arm; empty when it was not trained."""
    return tuple(contestant.seed for contestant in contestants if contestant.seed is not None)


_Means = Mapping[tuple[str, str, str], tuple[Statistic, Mean]]
"""(layer, arm, name) -> statistic and mean; the layer is "criterion", "metric", or "kind=" with a kind."""


def _means(table: ScoreTable, kinds: tuple[str, ...], alpha: float, draws: int, seed: int) -> _Means:
    layers = {("criterion", *key): values for key, values in table.scores.items()}
    layers |= {("metric", *key): values for key, values in table.metric_values.items()}
    for kind in dict.fromkeys(kinds):
        mask = np.array([own == kind for own in kinds])
        layers |= {(f"kind={kind}", *key): np.where(mask, values, np.nan) for key, values in table.scores.items()}
    statistics = [mean_statistic(values, table.clusters, table.cluster_count) for values in layers.values()]
    found = estimates(statistics, draws, seed)
    return {
        key: (statistic, Mean(statistic.mean, estimate.interval(alpha) if estimate else None, statistic.items, statistic.clusters))
        for key, statistic, estimate in zip(layers, statistics, found, strict=True)
    }


def _criterion(table: ScoreTable, arm: str, criterion: str, means: _Means) -> CriterionScore:
    statistic, mean = means["criterion", arm, criterion]
    spread = statistic.seed_variances[0]
    rows = zip(table.arms[arm], table.scores[arm, criterion], strict=True)
    kinds = [
        (layer.removeprefix("kind="), entry[1])
        for (layer, own, name), entry in means.items()
        if layer.startswith("kind=") and (own, name) == (arm, criterion)
    ]
    return CriterionScore(
        criterion=criterion,
        mean=mean,
        missing=table.missing[arm, criterion],
        seeds=tuple(
            SeedMean(contestant.seed, None if np.isnan(row).all() else float(np.nanmean(row)))
            for contestant, row in rows
            if contestant.seed is not None
        ),
        seed_sd=None if spread is None else float(np.sqrt(spread)),
        judge_sd=table.judge_sd[arm, criterion],
        kinds=tuple(KindMean(kind, found) for kind, found in kinds),
    )


def _abstention(answers: Sequence[Answer], answerable: Mapping[str, bool]) -> Abstention:
    given = [answer for answer in answers if answer.text is not None]
    should = [answer.abstained for answer in given if not answerable[answer.item]]
    should_not = [answer.abstained for answer in given if answerable[answer.item]]
    right = sum(should) + len(should_not) - sum(should_not)
    return Abstention(
        answerable=len(should_not),
        unanswerable=len(should),
        rate=_share(sum(should) + sum(should_not), len(given)),
        rate_answerable=_share(sum(should_not), len(should_not)),
        rate_unanswerable=_share(sum(should), len(should)),
        correct=_share(right, len(given)),
    )


def _usage(answers: Sequence[Answer], judgements: Sequence[Judgement]) -> Usage:
    given = [answer for answer in answers if answer.text is not None]
    words = [float(len((answer.text or "").split())) for answer in given]
    tokens = [float(answer.completion_tokens) for answer in given]
    latency = [answer.latency_ms for answer in given]
    reasons = Counter(answer.error or "no text" for answer in answers if answer.text is None)
    return Usage(
        answers=len(answers),
        errors=len(answers) - len(given),
        error_reasons=_by_count(reasons),
        snapshots=_by_count(Counter(answer.snapshot for answer in given if answer.snapshot)),
        truncated=sum(answer.finish_reason == "length" for answer in given),
        cut=sum(bool(answer.cut) for answer in answers),
        words_mean=float(np.mean(words)) if words else None,
        words_median=_percentile(words, 50),
        tokens_mean=float(np.mean(tokens)) if tokens else None,
        tokens_median=_percentile(tokens, 50),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        cost_usd=known_sum([answer.cost_usd for answer in answers]),
        unpriced=sum(answer.cost_usd is None for answer in answers),
        latency_median_ms=_percentile(latency, 50),
        latency_p95_ms=_percentile(latency, 95),
        judge_prompt_tokens=sum(judgement.prompt_tokens for judgement in judgements),
        judge_completion_tokens=sum(judgement.completion_tokens for judgement in judgements),
        judge_cost_usd=known_sum([judgement.cost_usd for judgement in judgements]),
        judge_unpriced=sum(judgement.cost_usd is None for judgement in judgements),
    )


def _by_count(counted: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counted.items(), key=lambda entry: (-entry[1], entry[0])))


def known_sum(values: Sequence[float | None]) -> float | None:
    """The sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
