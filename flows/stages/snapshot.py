"""Stage 3: the passages of every item, retrieved once and shown to all arms alike. Asks the retriever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import cached_property

from tunetrial.retriever.v1 import retriever_pb2

from flows.clients import ServiceError, explain_failure
from flows.connections import Services, exchange
from flows.data_spec import RetrievalSpec
from flows.errors import TrialError, UserError
from flows.progress import Progress
from flows.records import Hit, Item, Passage
from flows.stages.index import IndexPlan, ensure_index, trial_index
from flows.stages.prepare import Prepared
from flows.store import digest
from flows.trial import Trial

VERSION = 1
_IN_FLIGHT = 64
# Beyond the distractors asked for, so many hits more, since gold passages among the hits are no distractors.
_SPARE = 4
# The retriever gives no more at once.
_MOST = 1000

_MODES = {
    "lexical": retriever_pb2.SEARCH_MODE_LEXICAL,
    "dense": retriever_pb2.SEARCH_MODE_DENSE,
    "hybrid": retriever_pb2.SEARCH_MODE_HYBRID,
}


@dataclass(frozen=True)
class Snapshot:
    """Ranked hits by item. Training items may have more than `k`; `shown` gives the passages that a prompt shows."""

    key: str
    hits: tuple[Hit, ...]
    k: int
    reranker: str = ""
    """The cross-encoder that reordered the hits, as the retriever names it; "" without reranking."""

    @cached_property
    def by_item(self) -> dict[str, tuple[Hit, ...]]:
        """Hits by item, best first."""
        found: dict[str, list[Hit]] = {}
        for hit in self.hits:
            found.setdefault(hit.item, []).append(hit)
        return {item: tuple(sorted(hits, key=lambda hit: hit.rank)) for item, hits in found.items()}

    def shown(self, prepared: Prepared, item: str) -> tuple[Passage, ...]:
        """What prompts show of the first k passages of an item: these, or their parents, which are fewer where passages share one."""
        return prepared.shown(hit.passage for hit in self.by_item.get(item, ())[: self.k])


@dataclass(frozen=True, slots=True)
class Found:
    """What a search brought for one item, best first."""

    item: str
    hits: tuple[Hit, ...]


async def snapshot(trial: Trial, prepared: Prepared) -> Snapshot:
    """Hits of test items, few-shot examples and, where a training context needs them, training items."""
    settings = trial.spec.retrieval
    wanted = [(item, settings.k) for item in (*prepared.test, *prepared.shots)]
    deep = _training_depth(trial)
    if deep:
        wanted += [(item, deep) for item in _trained_on(trial, prepared)]
    plan = trial_index(trial, prepared)
    # Which one it is has to be asked: another would give other passages.
    reranker = await needed_reranker(trial.services, trial.progress, plan, "retrieval.rerank") if settings.rerank else ""
    inputs = {
        "version": VERSION,
        "index": plan.name,
        "settings": settings.model_dump(mode="json", exclude={"chunk", "encoder"}),
        "reranker": reranker,
        "queries": [[item.id, item.question, k] for item, k in wanted],
    }
    key = digest(inputs)
    if not trial.store.has("snapshots", key):
        await ensure_index(trial.services, trial.progress, plan)
        trial.progress.stage("snapshot", len(wanted))
        hits: list[Hit] = []
        async for found in search(trial.services, plan.name, wanted, settings):
            hits += found.hits
            trial.progress.advance("snapshot")
        trial.store.write_records("snapshots", key, "hits.parquet", Hit, hits)
        trial.store.finish("snapshots", key, {name: inputs[name] for name in inputs if name != "queries"})
        trial.progress.finish("snapshot", f"{len(wanted)} questions")
    return Snapshot(key, trial.store.read_records("snapshots", key, "hits.parquet", Hit), settings.k, reranker)


def _training_depth(trial: Trial) -> int:
    """Hits that training contexts need of each training item; 0 for none."""
    depths = [0]
    for training in trial.spec.training.values():
        if training.context_name == "retrieved":
            depths.append(trial.spec.retrieval.k)
        if training.raft is not None and training.raft.hard:
            depths.append(training.raft.distractors + 1 + _SPARE)
            if trial.spec.retrieval.chunk.parent != "none":
                # Many hits may share a parent, and no passage of the gold one is a distractor.
                depths.append(min(window(trial.spec.retrieval), _MOST))
    return max(depths)


def _trained_on(trial: Trial, prepared: Prepared) -> tuple[Item, ...]:
    """Every item that a family may train on, in the order of the pool."""
    wanted = [(family, training) for family, training in trial.spec.training.items() if training.preferences is None]
    found = {item.id for family, training in wanted for item in prepared.of_family(family).pool[: max(training.sizes)]}
    return tuple(item for item in prepared.pool if item.id in found)


async def search(services: Services, index: str, wanted: Iterable[tuple[Item, int]], settings: RetrievalSpec) -> AsyncIterator[Found]:
    """Hits of each item, as many as wanted, in the order in which they come. Raises ServiceError for the first query that fails."""
    requests = {
        item.id: retriever_pb2.BatchSearchRequest(
            id=item.id,
            search=retriever_pb2.SearchRequest(index=index, query=item.question, settings=search_settings(settings, k)),
        )
        for item, k in wanted
    }
    async with services.use("retriever") as clients:
        async for response in exchange(clients.retriever.BatchSearch, requests, _IN_FLIGHT):
            if response.HasField("failure"):
                raise explain_failure("retriever", response.failure)
            yield Found(response.id, tuple(_to_hit(response.id, hit) for hit in response.search.hits))


async def reranker_of(services: Services, progress: Progress, plan: IndexPlan) -> str | None:
    """The cross-encoder of the retriever, as it names it; None when it has none. Makes the index, without which it is not told."""
    try:
        return await told_reranker(services, plan.name)
    except ServiceError as error:
        if error.reason not in NO_INDEX:
            raise
    await ensure_index(services, progress, plan)
    return await told_reranker(services, plan.name)


NO_INDEX = ("INDEX_NOT_FOUND", "INDEX_NOT_SEALED")
"""Reasons for which a retriever that has a reranker does not name it."""


async def told_reranker(services: Services, index: str) -> str | None:
    """The same, from a search. Raises ServiceError with a reason of `NO_INDEX`."""
    settings = retriever_pb2.SearchSettings(mode=retriever_pb2.SEARCH_MODE_LEXICAL, k=1, rerank=True)
    request = retriever_pb2.SearchRequest(index=index, query="which reranker", settings=settings)
    try:
        async with services.use("retriever") as clients:
            response = await clients.retriever.Search(request, timeout=600)
    except ServiceError as error:
        if error.reason == "RERANKER_NOT_CONFIGURED":
            return None
        raise
    if not response.reranker:
        raise TrialError("the retriever reranked and did not say by what: it is older than this command; update it")
    return response.reranker


async def needed_reranker(services: Services, progress: Progress, plan: IndexPlan, key: str) -> str:
    """The reranker for which the spec's `key` asks. UserError when the retriever has none."""
    reranker = await reranker_of(services, progress, plan)
    if reranker is None:
        raise _no_reranker(key)
    return reranker


async def check_reranker(services: Services, key: str) -> None:
    """The same without an index, as far as a retriever tells: one that has a reranker only misses the index. UserError when it has none."""
    try:
        reranker = await told_reranker(services, "no-such-index")
    except ServiceError as error:
        if error.reason in NO_INDEX:
            return
        raise
    if reranker is None:
        raise _no_reranker(key)


def _no_reranker(key: str) -> UserError:
    return UserError(
        f"{key}: the retriever has no reranker. Set TUNETRIAL_RERANKER where it runs (name or folder of a sentence-transformers "
        "cross-encoder), or search without"
    )


def search_settings(spec: RetrievalSpec, k: int) -> retriever_pb2.SearchSettings:
    """The spec's settings as the retriever takes them."""
    # The window does not depend on k, so that the first k hits are the same however many are asked for.
    return retriever_pb2.SearchSettings(
        mode=_MODES[spec.mode],
        k=k,
        window=max(window(spec), k),
        fusion_k=spec.fusion_k,
        lexical_weight=spec.lexical_weight,
        dense_weight=spec.dense_weight,
        rerank=spec.rerank,
    )


def window(spec: RetrievalSpec) -> int:
    """Passages that each leg gives before fusion."""
    return spec.window or max(50, 5 * spec.k)


def _to_hit(item: str, hit: retriever_pb2.Hit) -> Hit:
    return Hit(
        item=item,
        passage=hit.passage.id,
        rank=hit.rank,
        score=hit.score,
        lexical_rank=hit.lexical_rank if hit.HasField("lexical_rank") else None,
        lexical_score=hit.lexical_score if hit.HasField("lexical_score") else None,
        dense_rank=hit.dense_rank if hit.HasField("dense_rank") else None,
        dense_score=hit.dense_score if hit.HasField("dense_score") else None,
        rerank_score=hit.rerank_score if hit.HasField("rerank_score") else None,
    )
