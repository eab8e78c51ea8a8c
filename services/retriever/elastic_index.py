"""Indexes in Elasticsearch 8.19 and 9. Knows no encoder and no wire.

An index `name` is one index of the cluster, `<prefix><name>.passages`, with one alias: `<prefix><name>.ingest` while open, `<prefix><name>`
once sealed. Bulk writes go through the first and demand that it is an alias, so that a deleted index never comes back as one that the
cluster made up; searches go through the second. Sealing blocks writes, merges, hashes the content and then swaps the alias in one step of
the cluster: a process killed at any time leaves an index that is open with all that was acknowledged, or sealed.

Several retrievers may share a cluster: what is in an index is asked of it, never remembered, but that a sealed index is as it is, for some
seconds. The dense leg is approximate unless `vector_index` is flat; BM25 counts as Lucene does, over all shards together.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from elastic_transport import ApiError
from elasticsearch import AsyncElasticsearch

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, TunetrialError, Unavailable
from services.retriever.batching import Batching
from services.retriever.domain import (
    ContentHash,
    Hit,
    Index,
    IndexSettings,
    IngestReport,
    Mode,
    Passage,
    PassageFailure,
    Query,
    Vectors,
    encoder_changed,
    sealed,
)
from services.retriever.elastic_client import ElasticConnection, explained, failure
from services.retriever.elastic_documents import (
    LANGUAGES,
    Layout,
    create_body,
    from_manifest,
    rows,
    server_fusion,
    to_document,
    to_manifest,
    to_passage,
)
from services.retriever.elastic_search import Asked, search_all, search_together

_SEAL_ROWS = 2000
_MERGE_S = 6 * 3600
_REMEMBERED_S = 5.0
_TOGETHER = 16
"""Queries of concurrent callers that go to the cluster in one request."""
_WAIT_S = 0.002
"""How long a query waits for others to go with, while a request is under way."""

_CREATED, _BAD, _CONFLICT = 201, 400, 409


class ElasticIndexes:
    """All indexes of a cluster whose names begin with a prefix."""

    def __init__(
        self,
        connection: ElasticConnection,
        *,
        prefix: str,
        layout: Layout,
        merge_segments: int,
        server_fusion: bool,
        search_requests: int,
    ) -> None:
        """Asks nothing of the cluster yet. `merge_segments` 0 leaves the segments as they are; `search_requests` are under way at once."""
        self._connection, self._prefix, self._layout = connection, prefix, layout
        self._merge_segments, self._server_fusion = merge_segments, server_fusion
        self._sealed: dict[str, tuple[Index, float]] = {}
        self._searches = Batching(self._search_together, largest=_TOGETHER, in_flight=search_requests, wait_s=_WAIT_S)

    async def close(self) -> None:
        """Closes the connections."""
        await self._connection.close()

    async def ready(self) -> None:
        """Raises Unavailable when the cluster is away or an index of ours has lost a shard."""
        async with self._cluster("any") as client:
            health = (await client.cluster.health(index=f"{self._prefix}*", expand_wildcards="all", timeout="1s")).body
        if health["status"] == "red":
            message = "Elasticsearch is red: {count} shards are not assigned"
            raise Unavailable("INDEX_STORE_UNAVAILABLE", message, count=health["unassigned_shards"])

    async def create(self, name: str, settings: IndexSettings) -> Index:
        """See `Indexes`."""
        if settings.language and settings.language.lower() not in LANGUAGES.split(", "):
            message = "no language {language}: use one of {languages}, or none"
            raise _language(message, language=settings.language, languages=LANGUAGES)
        index = Index(name, settings, datetime.now(UTC))
        async with self._cluster(name) as client:
            try:
                await client.indices.create(
                    index=self._index(name),
                    aliases={self._ingest_alias(name): {"is_write_index": True}},
                    **create_body(settings, self._layout, to_manifest(index)),
                )
            except ApiError as error:
                if "has not been configured" in str(error.body):
                    raise self._no_analyzer(settings) from error
                if "resource_already_exists_exception" not in str(error.body):
                    raise
                index = await self.get(name)
        if index.settings != settings:
            message = "index {name} exists with other settings ({settings}): choose another name or delete it"
            raise AlreadyExists("INDEX_SETTINGS_DIFFER", message, name=name, settings=asdict(index.settings))
        return index

    def _no_analyzer(self, settings: IndexSettings) -> TunetrialError:
        if settings.language:
            return _language("this Elasticsearch has no analyzer for {language}: leave the language unset", language=settings.language)
        message = "this Elasticsearch has no analyzer {analyzer}: set TUNETRIAL_ELASTICSEARCH_ANALYZER to one that it has"
        return FailedPrecondition("ANALYZER_UNKNOWN", message, analyzer=self._layout.analyzer)

    async def get(self, name: str) -> Index:
        """See `Indexes`."""
        known = self._sealed.get(name)
        if known is not None and time.monotonic() - known[1] < _REMEMBERED_S:
            return known[0]
        self._sealed.pop(name, None)
        async with self._cluster(name) as client:
            found = (await client.indices.get(index=self._index(name)))[self._index(name)]
            index = _to_index(name, found)
            if self._search_alias(name) in found["aliases"]:
                self._sealed[name] = index, time.monotonic()
                return index
            await client.indices.refresh(index=self._index(name))
            count = (await client.count(index=self._index(name)))["count"]
        return replace(index, passage_count=count, seal_time=None, content_hash="")

    async def names(self) -> Sequence[str]:
        """See `Indexes`."""
        beginning, end = self._index("").split(".")
        async with self._cluster("any") as client:
            found = await client.indices.get(index=self._index("*"), filter_path="*.mappings._meta.tunetrial.name")
        return sorted(name.removeprefix(beginning).removesuffix(f".{end}") for name in found)

    async def delete(self, name: str) -> None:
        """See `Indexes`."""
        self._sealed.pop(name, None)
        async with self._cluster(name) as client:
            await client.indices.delete(index=self._index(name))

    async def present(self, name: str, ids: Sequence[str]) -> frozenset[str]:
        """See `Indexes`."""
        if not ids:
            return frozenset()
        async with self._cluster(name) as client:
            found = await client.mget(index=self._index(name), ids=list(ids), source=False, filter_path="docs._id,docs.found,docs.error")
        for document in found["docs"]:
            if "error" in document:
                raise failure(name, 500, document)
        return frozenset(document["_id"] for document in found["docs"] if document["found"])

    async def add(self, name: str, passages: Sequence[Passage], vectors: Vectors) -> IngestReport:
        """See `Indexes`."""
        if not passages:
            return IngestReport(0, 0, ())
        alias = self._ingest_alias(name)
        actions = [
            {"_op_type": "create", "_index": alias, "_id": passage.id, **to_document(passage, vector)}
            for passage, vector in zip(passages, rows(vectors), strict=True)
        ]
        with explained(name):
            done = await self._connection.bulk(actions, require_alias=True)
        added_count, failures = 0, []
        for item in done:
            if item["status"] == _CREATED:
                added_count += 1
            elif item["status"] != _CONFLICT:
                failures.append(await self._refused(name, item, vectors))
        return IngestReport(added_count, len(passages) - added_count - len(failures), tuple(failures))

    async def _refused(self, name: str, item: Mapping[str, Any], vectors: Vectors) -> PassageFailure:
        """What the cluster says of one passage; raises what is true of all."""
        if "exception" in item:
            with explained(name):
                raise item["exception"]
        index = await self.get(name)
        if index.sealed:
            raise sealed(name)
        if item["status"] != _BAD:
            raise failure(name, item["status"], item["error"])
        if index.vector_dimensions not in (0, vectors.dimensions):
            raise encoder_changed(index, vectors)
        error = item["error"]
        why = error.get("caused_by", error).get("reason", error["type"])
        return PassageFailure(item["_id"], "PASSAGE_REFUSED", f"Elasticsearch refused it: {why}"[:500])

    async def seal(self, name: str) -> Index:
        """See `Indexes`."""
        index = await self.get(name)
        if index.sealed:
            return index
        if not index.passage_count:
            raise FailedPrecondition("INDEX_EMPTY", "index {name} has no passages: ingest some before sealing", name=name)
        target = self._index(name)
        async with self._cluster(name) as client:
            await client.indices.add_block(index=target, block="write")  # returns once writes under way have ended
            await client.indices.refresh(index=target)
            if self._merge_segments:
                await client.options(request_timeout=_MERGE_S).indices.forcemerge(index=target, max_num_segments=self._merge_segments)
            digest, count = ContentHash(index.settings), 0
            async for passage in _by_id(client, target):
                digest.add(passage)
                count += 1
            done = replace(index, passage_count=count, seal_time=datetime.now(UTC), content_hash=digest.hexdigest())
            await client.indices.put_mapping(index=target, meta=to_manifest(done))
            await client.indices.update_aliases(
                actions=[
                    {"add": {"index": target, "alias": self._search_alias(name)}},
                    {"remove": {"index": target, "alias": self._ingest_alias(name), "must_exist": False}},
                ]
            )
        return await self.get(name)

    async def search(self, name: str, query: Query) -> tuple[Hit, ...]:
        """See `Indexes`."""
        index = await self.get(name)
        if query.vector is not None and query.vector.dimensions != index.vector_dimensions:
            raise encoder_changed(index, query.vector)
        by_server = self._server_fusion and query.settings.mode is Mode.HYBRID
        asked = Asked(name, self._search_alias(name), query)
        found = await self._fused_by_server(asked) if by_server else (await self._searches(asked))[0]
        if isinstance(found, NotFound):
            self._sealed.pop(name, None)
        if isinstance(found, TunetrialError):
            raise found
        return found

    async def _search_together(self, asked: Sequence[Asked]) -> list[tuple[Hit, ...] | TunetrialError]:
        async with self._cluster("any") as client:
            return await search_together(client, asked, self._layout)

    async def _fused_by_server(self, asked: Asked) -> tuple[Hit, ...] | TunetrialError:
        settings = asked.query.settings
        if settings.lexical_weight != settings.dense_weight:
            message = "the cluster's own fusion knows no weights: leave them equal, or unset TUNETRIAL_ELASTICSEARCH_SERVER_FUSION"
            raise InvalidArgument("SEARCH_SETTINGS_INVALID", message, field="settings.lexical_weight")
        async with self._cluster(asked.name) as client:
            (response,) = await search_all(client, [(asked.target, server_fusion(asked.query, self._layout))])
        if "error" in response:
            return failure(asked.name, response["status"], response)
        return tuple(Hit(to_passage(hit["_source"]), rank, hit["_score"]) for rank, hit in enumerate(response["hits"]["hits"], 1))

    @asynccontextmanager
    async def _cluster(self, name: str) -> AsyncIterator[AsyncElasticsearch]:
        client = await self._connection.client()
        with explained(name):
            yield client

    def _index(self, name: str) -> str:
        return f"{self._prefix}{name}.passages"

    def _ingest_alias(self, name: str) -> str:
        return f"{self._prefix}{name}.ingest"

    def _search_alias(self, name: str) -> str:
        return f"{self._prefix}{name}"


async def _by_id(client: AsyncElasticsearch, index: str) -> AsyncIterator[Passage]:
    """All passages in the order of their ids (that of their UTF-8 bytes)."""
    pit = (await client.open_point_in_time(index=index, keep_alive="5m"))["id"]
    after: dict[str, Any] = {}
    try:
        while True:
            page = await client.search(
                pit={"id": pit, "keep_alive": "5m"}, size=_SEAL_ROWS, sort=[{"id": "asc"}], track_total_hits=False, **after
            )
            hits = page["hits"]["hits"]
            for hit in hits:
                yield to_passage(hit["_source"])
            if len(hits) < _SEAL_ROWS:
                return
            after = {"search_after": hits[-1]["sort"]}
    finally:
        await client.close_point_in_time(id=pit)


def _to_index(name: str, found: Mapping[str, Any]) -> Index:
    try:
        index = from_manifest(found["mappings"].get("_meta", {}))
    except (KeyError, TypeError, ValueError) as error:
        why = f"its manifest is broken ({type(error).__name__}: {error})"
        message = "index {name} cannot be read: {why}; delete it and ingest it again"
        raise FailedPrecondition("INDEX_UNREADABLE", message, name=name, why=why) from error
    return replace(index, vector_dimensions=found["mappings"]["properties"]["vector"].get("dims", 0))


def _language(message: str, **metadata: object) -> InvalidArgument:
    return InvalidArgument("INDEX_SETTINGS_INVALID", message, field="settings.language", **metadata)
