"""The whole analysis of a trial in one call: contrasts with verdicts, arm summaries, curves, retrieval. Knows neither files nor services.

The same records and settings give the same analysis, whatever the order of the records; criteria and metrics are listed as they first
appear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.analysis.contrasts import Contrast, ItemDifference, contrasts, item_differences
from flows.analysis.retrieval import RetrievalQuality, retrieval_quality
from flows.analysis.scores import ScoreTable, score_table
from flows.analysis.settings import AnalysisSettings
from flows.analysis.summary import ArmSummary, Curve, curves, known_sum, summaries
from flows.records import Answer, Contestant, Hit, Item, Judgement


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the whole trial: answers and judgements, tokens and money, as in `summary.Usage`. Training is not in it."""

    answers: int
    judgements: int
    prompt_tokens: int
    completion_tokens: int
    judge_prompt_tokens: int
    judge_completion_tokens: int
    cost_usd: float | None
    unpriced: int
    judge_cost_usd: float | None
    judge_unpriced: int


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that the report says of a trial in numbers. `primary` is also in `contrasts`, first; the others follow by criterion, then arm."""

    settings: AnalysisSettings
    items: int
    clusters: int
    criteria: tuple[str, ...]
    primary: Contrast
    contrasts: tuple[Contrast, ...]
    arms: tuple[ArmSummary, ...]
    curves: tuple[Curve, ...]
    item_differences: tuple[ItemDifference, ...]
    retrieval: RetrievalQuality | None
    totals: Totals


def analyse(
    items: Sequence[Item],
    contestants: Sequence[Contestant],
    answers: Sequence[Answer],
    judgements: Sequence[Judgement],
    *,
    hits: Sequence[Hit],
    gold: Mapping[str, tuple[str, ...]],
    settings: AnalysisSettings,
) -> Analysis:
    """Analyse a trial. `gold` holds the gold passages' ids by item. Raises ValueError when the settings name an arm or criterion that has
    no judgements."""
    # Ordered by id, so that sums, and with them every digit, do not depend on the order in which records came.
    items = sorted(items, key=lambda item: item.id)
    table = score_table(items, contestants, judgements)
    _check(table, settings)
    compared = contrasts(table, settings)
    arms = summaries(table, items, answers, judgements, alpha=settings.alpha, draws=settings.bootstrap, seed=settings.seed)
    return Analysis(
        settings=settings,
        items=len(items),
        clusters=table.cluster_count,
        criteria=table.criteria,
        primary=compared[0],
        contrasts=compared,
        arms=arms,
        curves=curves(arms),
        item_differences=item_differences(table, settings),
        retrieval=retrieval_quality(items, hits, gold, alpha=settings.alpha, draws=settings.bootstrap, seed=settings.seed),
        totals=_totals(arms, len(judgements)),
    )


def _check(table: ScoreTable, settings: AnalysisSettings) -> None:
    for arm in (settings.control, settings.primary.arm):
        if arm not in table.arms:
            raise ValueError(f"no arm is called {arm!r}: name one of {', '.join(table.arms)}")
    if settings.primary.arm == settings.control:
        raise ValueError(f"the primary contrast compares {settings.control!r} with itself: name another arm")
    if settings.primary.criterion not in table.criteria:
        raise ValueError(f"nothing was judged on {settings.primary.criterion!r}: name one of {', '.join(table.criteria) or 'none'}")
    if settings.margin < 0:
        raise ValueError(f"margin is {settings.margin}: give the largest loss that does not matter, as a number of at least 0")
    if not 0 < settings.alpha < 1:
        raise ValueError(f"alpha is {settings.alpha}: give a level between 0 and 1, as 0.05")
    if settings.bootstrap < 1000:
        raise ValueError(f"bootstrap is {settings.bootstrap}: fewer than 1000 draws give no reliable interval")


def _totals(arms: Sequence[ArmSummary], judgements: int) -> Totals:
    used = [arm.usage for arm in arms]
    return Totals(
        answers=sum(usage.answers for usage in used),
        judgements=judgements,
        prompt_tokens=sum(usage.prompt_tokens for usage in used),
        completion_tokens=sum(usage.completion_tokens for usage in used),
        judge_prompt_tokens=sum(usage.judge_prompt_tokens for usage in used),
        judge_completion_tokens=sum(usage.judge_completion_tokens for usage in used),
        cost_usd=known_sum([usage.cost_usd for usage in used]),
        unpriced=sum(usage.unpriced for usage in used),
        judge_cost_usd=known_sum([usage.judge_cost_usd for usage in used]),
        judge_unpriced=sum(usage.judge_unpriced for usage in used),
    )
