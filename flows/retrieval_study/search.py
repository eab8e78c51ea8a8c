"""Searches every question under one condition, and times some of them one by one. Asks the retriever.

What was found is kept question by question under the hash of all that decides it, so a study that was killed goes on where it was, and one
search serves all conditions that would repeat it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from tunetrial.retriever.v1 import retriever_pb2

from flows.connections import Services
from flows.data_spec import RetrievalSpec
from flows.progress import Progress
from flows.records import Item
from flows.stages.snapshot import search, search_settings
from flows.store import Rows, Store, digest

# Raise it when the code here changes what is kept.
VERSION = 1
_TIMED = 30
"""Questions that are timed: enough for a median, few enough to be no work."""
_KIND, _TIMES = "searches", "search-times"


@dataclass(frozen=True, slots=True)
class Searched:
    """Ids of the passages found for each item, best first, and the median time of one search (None when there was nothing to time)."""

    passages: Mapping[str, tuple[str, ...]]
    median_ms: float | None
    timed: int


async def search_all(
    services: Services,
    store: Store,
    progress: Progress,
    *,
    name: str,
    index: str,
    reranker: str,
    settings: RetrievalSpec,
    wanted: Sequence[tuple[Item, int]],
) -> Searched:
    """Everything found under one condition called `name`; asks only what is not in the store."""
    group = digest({"version": VERSION, "index": index, "mode": settings.mode, "reranker": reranker if settings.rerank else None})
    rows = Rows(store, _KIND, group)
    keys = {item.id: digest([item.question, _deciding(settings, k)]) for item, k in wanted}
    missing = [(item, k) for item, k in wanted if keys[item.id] not in rows]
    if missing:
        stage = f"search {name}"
        progress.stage(stage, len(wanted), len(wanted) - len(missing))
        try:
            async for found in search(services, index, missing, settings):
                rows.add(keys[found.item], [hit.passage for hit in found.hits])
                progress.advance(stage)
        finally:
            rows.flush()
        progress.finish(stage, f"{len(wanted)} questions")
    times = await _times(services, store, digest([group, _deciding(settings, settings.k)]), index, settings, wanted)
    passages = {item.id: tuple(rows[keys[item.id]]) for item, _ in wanted}
    return Searched(passages, statistics.median(times) if times else None, len(times))


def _deciding(settings: RetrievalSpec, k: int) -> dict[str, Any]:
    """What decides a search beside index, mode and reranker: of one leg alone the settings of fusion decide nothing."""
    if settings.mode != "hybrid" and not settings.rerank:
        return {"k": k}
    message: dict[str, Any] = MessageToDict(search_settings(settings, k))
    return message


async def _times(
    services: Services, store: Store, key: str, index: str, settings: RetrievalSpec, wanted: Sequence[tuple[Item, int]]
) -> list[float]:
    """Milliseconds of searches made one at a time, as one user waits for them (those of a batch wait for each other). Measured once."""
    if not store.has(_TIMES, key):
        times: list[float] = []
        # As a trial would search: only the passages that are shown. The first search only warms up.
        questions = [item.question for item, _ in wanted[:_TIMED]]
        async with services.use("retriever") as clients:
            for question in (*questions[:1], *questions):
                request = retriever_pb2.SearchRequest(index=index, query=question, settings=search_settings(settings, settings.k))
                began = time.perf_counter()
                await clients.retriever.Search(request, timeout=600)
                times.append(1000 * (time.perf_counter() - began))
        store.write_json(_TIMES, key, "ms.json", times[1:])
        store.finish(_TIMES, key, {"index": index, "settings": settings.model_dump(mode="json")})
    measured: list[float] = store.read_json(_TIMES, key, "ms.json")
    return measured
