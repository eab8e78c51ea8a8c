"""Searches of several callers as two requests: one for the legs of all, one for the passages that fusion kept. Knows no connection.

The cluster pays for each request and each passage it reads, not only for what it ranks. So legs bring ids alone, and queries go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from elasticsearch import AsyncElasticsearch

from services.common.errors import TunetrialError
from services.retriever.domain import Hit, Mode, Query, not_found
from services.retriever.elastic_client import failure
from services.retriever.elastic_documents import MOST_HITS, Layout, first_limit, legs, to_leg, to_passage
from services.retriever.fusion import Ranked, fuse, ranked, settled

# Terms of all shards count together, so that the number of shards changes no score; a part of the shards is no answer.
_HOW = {"search_type": "dfs_query_then_fetch", "allow_partial_search_results": False}


@dataclass(frozen=True, slots=True)
class Asked:
    """A query and its index, by the name that callers know and by the one that the cluster knows."""

    name: str
    target: str
    query: Query


async def search_together(client: AsyncElasticsearch, asked: Sequence[Asked], layout: Layout) -> list[tuple[Hit, ...] | TunetrialError]:
    """Hits of each query, or why it alone failed. Raises what the client raises when a request fails for all."""
    found = await _rank(client, asked, layout)
    kept = [(each, ranks) for each, ranks in zip(asked, found, strict=True) if not isinstance(ranks, TunetrialError)]
    wanted = [{"_index": each.target, "_id": rank.key} for each, ranks in kept for rank in ranks]
    documents = iter((await client.mget(docs=wanted, realtime=False))["docs"] if wanted else ())
    return [
        ranks if isinstance(ranks, TunetrialError) else _hits(each.name, ranks, documents) for each, ranks in zip(asked, found, strict=True)
    ]


async def search_all(client: AsyncElasticsearch, searches: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Responses to searches, each of a target and a body, in one request. Those that failed have an `error`."""
    lines: list[Any] = []  # bytes pass as they are, which the client's types do not say
    for target, body in searches:
        lines.append(orjson.dumps({"index": target, **_HOW}))
        lines.append(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
    found: list[Mapping[str, Any]] = (await client.msearch(searches=lines))["responses"]
    return found


async def _rank(client: AsyncElasticsearch, asked: Sequence[Asked], layout: Layout) -> list[tuple[Ranked[str], ...] | TunetrialError]:
    """The best of each query. One whose leg ends within a tie asks again, for more of it."""
    found: dict[int, tuple[Ranked[str], ...] | TunetrialError] = {}
    limits = {place: first_limit(each.query.settings) for place, each in enumerate(asked)}
    while limits:
        bodies = {place: legs(asked[place].query, limit, layout) for place, limit in limits.items()}
        responses = iter(await search_all(client, [(asked[place].target, body) for place, each in bodies.items() for body in each]))
        for place, each in bodies.items():
            best = _best(asked[place], [next(responses) for _ in each], limits[place])
            if best is None:
                limits[place] = min(MOST_HITS, limits[place] * 4)
            else:
                found[place] = best
                del limits[place]
    return [found[place] for place in range(len(asked))]


def _best(asked: Asked, responses: Sequence[Mapping[str, Any]], limit: int) -> tuple[Ranked[str], ...] | TunetrialError | None:
    """The fused legs; None when those that were left out may tie with the last of a leg."""
    settings = asked.query.settings
    for response in responses:
        if "error" in response:
            return failure(asked.name, response["status"], response)
    modes = [mode for mode in (Mode.LEXICAL, Mode.DENSE) if settings.mode in (mode, Mode.HYBRID)]
    found = {mode: ranked(to_leg(response, mode), limit) for mode, response in zip(modes, responses, strict=True)}
    if limit < MOST_HITS and not all(settled(leg, settings.depth, limit) for leg in found.values()):
        return None
    best = {mode: leg[: settings.depth] for mode, leg in found.items()}
    return fuse(
        best.get(Mode.LEXICAL),
        best.get(Mode.DENSE),
        k=settings.k,
        fusion_k=settings.fusion_k,
        lexical_weight=settings.lexical_weight,
        dense_weight=settings.dense_weight,
    )


def _hits(name: str, ranks: Sequence[Ranked[str]], documents: Iterator[Mapping[str, Any]]) -> tuple[Hit, ...] | TunetrialError:
    """The hits, whose documents come next."""
    found = [(each, next(documents)) for each in ranks]
    if any("_source" not in document for _, document in found):  # deleted between the two requests
        return not_found(name)
    return tuple(
        Hit(to_passage(document["_source"]), rank, each.score, each.lexical_rank, each.lexical_score, each.dense_rank, each.dense_score)
        for rank, (each, document) in enumerate(found, 1)
    )
