"""Every condition tried: documents cut, indexed and searched, each once however many conditions share it. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import anyio.to_thread

from flows.analysis.retrieval_study import Ranking
from flows.chunking import searched
from flows.data_spec import ChunkSpec
from flows.persistence import persistently
from flows.records import Item
from flows.report.study_content import ConditionRow
from flows.retrieval_study.conditions import Condition
from flows.retrieval_study.inputs import Study
from flows.retrieval_study.questions import Passages, Questions, cut_passages
from flows.retrieval_study.search import search_all
from flows.stages.index import IndexPlan, ensure_index, plan_index
from flows.stages.snapshot import needed_reranker, reranker_of, window


@dataclass(frozen=True, slots=True)
class Tried:
    """What every condition found, and what is to be said about it. `conditions` and `rankings` go together."""

    conditions: tuple[ConditionRow, ...]
    rankings: tuple[Ranking, ...]
    reranker: str
    """The cross-encoder that was used; "" for none."""
    left_out: tuple[str, ...]
    """Conditions that there is no reranker for."""
    notes: tuple[str, ...]


async def try_all(study: Study, questions: Questions, conditions: Sequence[Condition]) -> Tried:
    """Everything found under every condition that the retriever can do. UserError when one that the spec names cannot be done."""
    rows: list[ConditionRow] = []
    rankings: list[Ranking] = []
    left_out: list[str] = []
    notes: dict[str, None] = {}
    notes |= dict.fromkeys(_unlike(questions, conditions))
    reranker: str | None = None
    cut: Passages | None = None
    for chunk, of_chunk in groupby(conditions, key=lambda condition: condition.retrieval.chunk):
        for number, (encoder, of_index) in enumerate(groupby(of_chunk, key=lambda condition: condition.retrieval.encoder)):
            # Documents are cut anew for another encoder only where its tokens are counted.
            if cut is None or number == 0 or chunk.count == "encoder":
                cut = await anyio.to_thread.run_sync(cut_passages, study.loaded, questions, chunk, encoder)
                notes |= dict.fromkeys(_unmapped(questions, cut, chunk))
            plan = await anyio.to_thread.run_sync(_plan, study, chunk, encoder, cut)
            here = list(of_index)
            if reranker is None:
                # Before anything is indexed: a reranker that is wanted and missing is said at once.
                reranker = await _reranker(study, plan, conditions)
            await persistently(study.progress, partial(ensure_index, study.services, study.progress, plan))
            for condition in here:
                if condition.retrieval.rerank and not reranker:
                    left_out.append(condition.name)
                    continue
                row, ranking, said = await _one(study, questions, condition, plan, cut, reranker)
                rows.append(row)
                rankings.append(ranking)
                notes |= dict.fromkeys(said)
    return Tried(tuple(rows), tuple(rankings), reranker or "", tuple(left_out), tuple(notes))


def _plan(study: Study, chunk: ChunkSpec, encoder: str, cut: Passages) -> IndexPlan:
    loaded = study.loaded
    return plan_index(loaded.spec.name, loaded.encoder(encoder), study.encoder_identity(encoder), searched(cut.passages, chunk))


async def _reranker(study: Study, plan: IndexPlan, conditions: Sequence[Condition]) -> str:
    """What the retriever reranks by; "" when it cannot, or when no condition wants it."""
    wanted = [condition for condition in conditions if condition.retrieval.rerank]
    if not wanted:
        return ""
    if all(condition.optional for condition in wanted):
        found: str | None = await persistently(study.progress, partial(reranker_of, study.services, study.progress, plan))
        return found or ""
    key = "grid.rerank" if study.loaded.spec.grid.rerank else "retrieval.rerank"
    return await persistently(study.progress, partial(needed_reranker, study.services, study.progress, plan, key))


async def _one(
    study: Study, questions: Questions, condition: Condition, plan: IndexPlan, cut: Passages, reranker: str
) -> tuple[ConditionRow, Ranking, list[str]]:
    """One condition: what is known of it, what it found, and what to read it with care for."""
    settings = condition.retrieval
    depth = max(*study.loaded.spec.grid.depths, settings.k)
    asked = [item for item in questions.items if any(gain > 0 for gain in cut.gains[item.id].values())]
    wanted = [(item, cut.wanted(item, depth, window(settings))) for item in asked]
    found = await persistently(
        study.progress,
        lambda: search_all(
            study.services,
            study.store,
            study.progress,
            name=condition.name,
            index=plan.name,
            reranker=reranker,
            settings=settings,
            wanted=wanted,
        ),
    )
    ranked = {item.id: cut.units(item, found.passages[item.id]) for item in asked}
    row = ConditionRow(
        name=condition.name,
        retrieval=settings.model_dump(mode="json"),
        index=plan.name,
        passages=len(plan.passages),
        median_ms=found.median_ms,
        timed=found.timed,
    )
    said = []
    if len(plan.passages) < depth:
        said.append(f"an index holds {len(plan.passages)} passages, fewer than the {depth} asked for")
    short = _short(depth, wanted, found.passages, ranked)
    if short:
        said.append(
            f"{condition.name}: for {short} of {len(wanted)} questions the passages searched are of fewer than {depth} documents; "
            "a larger retrieval.window would reach more"
        )
    return row, Ranking(condition.name, settings.k, ranked, cut.gains), said


def _unlike(questions: Questions, conditions: Sequence[Condition]) -> list[str]:
    cuts = {condition.retrieval.chunk.model_dump_json() for condition in conditions}
    if len(cuts) < 2 or all(item.relevance for item in questions.items):
        return []
    return ["conditions that cut documents differently look for different gold passages: larger ones are fewer and easier to find"]


def _unmapped(questions: Questions, cut: Passages, chunk: ChunkSpec) -> list[str]:
    if not cut.evidence_unmapped:
        return []
    count = sum(len(item.evidence) for item in questions.items)
    return [f"{cut.evidence_unmapped} of {count} pieces of evidence are in no passage ({chunk.unit})"]


def _short(
    depth: int, wanted: Sequence[tuple[Item, int]], passages: Mapping[str, Sequence[str]], ranked: Mapping[str, Sequence[str]]
) -> int:
    """Questions whose passages ran out before `depth` documents were found, though the index holds more."""
    return sum(item.relevance != () and len(passages[item.id]) == k and len(ranked[item.id]) < depth for item, k in wanted)
