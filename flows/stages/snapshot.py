"""Stage 3: the passages of every item, retrieved once and shown to all arms alike. Asks the retriever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property

from tunetrial.retriever.v1 import retriever_pb2

from flows.clients import explain_failure
from flows.connections import exchange
from flows.records import Hit, Item, Passage
from flows.stages.index import ensure_index, index_name
from flows.stages.prepare import Prepared
from flows.store import digest
from flows.trial import Trial

VERSION = 1
_IN_FLIGHT = 64
# Beyond the distractors asked for, so many hits more, since gold passages among the hits are no distractors.
_SPARE = 4

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

    @cached_property
    def by_item(self) -> dict[str, tuple[Hit, ...]]:
        """Hits by item, best first."""
        found: dict[str, list[Hit]] = {}
        for hit in self.hits:
            found.setdefault(hit.item, []).append(hit)
        return {item: tuple(sorted(hits, key=lambda hit: hit.rank)) for item, hits in found.items()}

    def shown(self, prepared: Prepared, item: str) -> tuple[Passage, ...]:
        """The first k passages of an item."""
        return tuple(prepared.by_id[hit.passage] for hit in self.by_item.get(item, ())[: self.k])


async def snapshot(trial: Trial, prepared: Prepared) -> Snapshot:
    """Hits of test items, few-shot examples and, where a training context needs them, training items."""
    settings = trial.spec.retrieval
    wanted = [(item, settings.k) for item in (*prepared.test, *prepared.shots)]
    deep = _training_depth(trial)
    if deep:
        wanted += [(item, deep) for item in prepared.pool[: _largest(trial)]]
    index = index_name(trial, prepared)
    inputs = {
        "version": VERSION,
        "index": index,
        "settings": settings.model_dump(mode="json", exclude={"chunk", "encoder"}),
        "queries": [[item.id, item.question, k] for item, k in wanted],
    }
    key = digest(inputs)
    if not trial.store.has("snapshots", key):
        await ensure_index(trial, prepared)
        trial.progress.stage("snapshot", len(wanted))
        hits = [hit async for hit in _search(trial, index, wanted)]
        trial.store.write_records("snapshots", key, "hits.parquet", Hit, hits)
        trial.store.finish("snapshots", key, {name: inputs[name] for name in ("version", "index", "settings")})
        trial.progress.finish("snapshot", f"{len(wanted)} questions")
    return Snapshot(key, trial.store.read_records("snapshots", key, "hits.parquet", Hit), settings.k)


def _training_depth(trial: Trial) -> int:
    """Hits that training contexts need of each training item; 0 for none."""
    depths = [0]
    for training in trial.spec.training.values():
        if training.context_name == "retrieved":
            depths.append(trial.spec.retrieval.k)
        if training.raft is not None and training.raft.hard:
            depths.append(training.raft.distractors + 1 + _SPARE)
    return max(depths)


def _largest(trial: Trial) -> int:
    return max(size for training in trial.spec.training.values() for size in training.sizes)


async def _search(trial: Trial, index: str, wanted: list[tuple[Item, int]]) -> AsyncIterator[Hit]:
    async with trial.services.use("retriever") as clients:
        async for response in exchange(clients.retriever.BatchSearch, _requests(trial, index, wanted), _IN_FLIGHT):
            if response.HasField("failure"):
                raise explain_failure("retriever", response.failure)
            for hit in response.search.hits:
                yield _to_hit(response.id, hit)
            trial.progress.advance("snapshot")


def _requests(trial: Trial, index: str, wanted: list[tuple[Item, int]]) -> dict[str, retriever_pb2.BatchSearchRequest]:
    searches = {
        item.id: retriever_pb2.SearchRequest(index=index, query=item.question, settings=search_settings(trial, k)) for item, k in wanted
    }
    return {name: retriever_pb2.BatchSearchRequest(id=name, search=search) for name, search in searches.items()}


def search_settings(trial: Trial, k: int) -> retriever_pb2.SearchSettings:
    """The spec's settings as the retriever takes them."""
    spec = trial.spec.retrieval
    # The window does not depend on k, so that the first k hits are the same however many are asked for.
    return retriever_pb2.SearchSettings(
        mode=_MODES[spec.mode],
        k=k,
        window=max(spec.window or max(50, 5 * spec.k), k),
        fusion_k=spec.fusion_k,
        lexical_weight=spec.lexical_weight,
        dense_weight=spec.dense_weight,
    )


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
    )
