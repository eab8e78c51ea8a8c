"""Wire to domain and back. The only module of this service that sees *_pb2; holds no rule of its own."""

# ruff: noqa: D102  the contract documents the rpcs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tunetrial.common.v1 import common_pb2
from tunetrial.retriever.v1 import retriever_pb2, retriever_pb2_grpc

from services.common.errors import InvalidArgument, TunetrialError
from services.common.server import to_failure
from services.retriever.domain import Hit, Index, IndexSettings, Mode, Part, Passage, SearchSettings
from services.retriever.retriever import Retriever

_Context = grpc.aio.ServicerContext[Any, Any]

_MODES: Mapping[int, Mode] = {
    retriever_pb2.SEARCH_MODE_UNSPECIFIED: Mode.HYBRID,
    retriever_pb2.SEARCH_MODE_LEXICAL: Mode.LEXICAL,
    retriever_pb2.SEARCH_MODE_DENSE: Mode.DENSE,
    retriever_pb2.SEARCH_MODE_HYBRID: Mode.HYBRID,
}


class RetrieverServicer(retriever_pb2_grpc.RetrieverServiceServicer):
    """The rpcs, as their comments in the contract say."""

    def __init__(self, retriever: Retriever, batch_concurrency: int) -> None:
        self._retriever, self._batch_concurrency = retriever, batch_concurrency

    async def CreateIndex(self, request: retriever_pb2.CreateIndexRequest, context: _Context) -> retriever_pb2.CreateIndexResponse:
        index, max_tokens = await self._retriever.create(request.name, to_index_settings(request.settings))
        return retriever_pb2.CreateIndexResponse(index=from_index(index), encoder_max_tokens=max_tokens)

    async def IngestPassages(
        self, requests: AsyncIterator[retriever_pb2.IngestPassagesRequest], context: _Context
    ) -> retriever_pb2.IngestPassagesResponse:
        report = await self._retriever.ingest(_parts(requests))
        return retriever_pb2.IngestPassagesResponse(
            added_count=report.added_count,
            skipped_count=report.skipped_count,
            failures=[
                retriever_pb2.PassageFailure(id=failure.id, reason=failure.reason, message=failure.message) for failure in report.failures
            ],
        )

    async def SealIndex(self, request: retriever_pb2.SealIndexRequest, context: _Context) -> retriever_pb2.SealIndexResponse:
        return retriever_pb2.SealIndexResponse(index=from_index(await self._retriever.seal(request.name)))

    async def GetIndex(self, request: retriever_pb2.GetIndexRequest, context: _Context) -> retriever_pb2.GetIndexResponse:
        return retriever_pb2.GetIndexResponse(index=from_index(await self._retriever.get(request.name)))

    async def ListIndexes(self, request: retriever_pb2.ListIndexesRequest, context: _Context) -> retriever_pb2.ListIndexesResponse:
        size = request.page_size if request.HasField("page_size") else 100
        indexes, token = await self._retriever.page(size, request.page_token)
        return retriever_pb2.ListIndexesResponse(indexes=[from_index(index) for index in indexes], next_page_token=token)

    async def DeleteIndex(self, request: retriever_pb2.DeleteIndexRequest, context: _Context) -> retriever_pb2.DeleteIndexResponse:
        await self._retriever.delete(request.name)
        return retriever_pb2.DeleteIndexResponse()

    async def Search(self, request: retriever_pb2.SearchRequest, context: _Context) -> retriever_pb2.SearchResponse:
        return await self._search(request)

    async def BatchSearch(
        self, requests: AsyncIterator[retriever_pb2.BatchSearchRequest], context: _Context
    ) -> AsyncIterator[retriever_pb2.BatchSearchResponse]:
        source = aiter(requests)
        seen: set[str] = set()
        running: set[asyncio.Task[retriever_pb2.BatchSearchResponse]] = set()
        reading: asyncio.Task[retriever_pb2.BatchSearchRequest | None] | None = asyncio.create_task(_next(source))
        try:
            while running or reading:
                # Nothing is read while as many queries run as may: a client that sends faster is held back by flow control.
                wait_for_more = reading is not None and len(running) < self._batch_concurrency
                waited: set[asyncio.Task[Any]] = {*running, reading} if reading and wait_for_more else set(running)
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if reading in done and reading is not None:
                    request = reading.result()
                    reading = None if request is None else asyncio.create_task(_next(source))
                    if request is not None:
                        running.add(asyncio.create_task(self._search_one(request, request.id in seen)))
                        seen.add(request.id)
                for task in done & running:
                    running.discard(task)
                    yield task.result()
        finally:
            for left in (*running, *([reading] if reading else ())):
                left.cancel()

    async def _search_one(self, request: retriever_pb2.BatchSearchRequest, again: bool) -> retriever_pb2.BatchSearchResponse:
        try:
            if again:
                raise InvalidArgument("QUERY_ID_REPEATED", "the id {id} came before in this stream", id=request.id, field="id")
            return retriever_pb2.BatchSearchResponse(id=request.id, search=await self._search(request.search))
        except TunetrialError as error:
            return retriever_pb2.BatchSearchResponse(id=request.id, failure=to_failure(error))

    async def _search(self, request: retriever_pb2.SearchRequest) -> retriever_pb2.SearchResponse:
        found = await self._retriever.search(request.index, request.query, to_search_settings(request.settings))
        return retriever_pb2.SearchResponse(hits=[from_hit(hit) for hit in found.hits], reranker=found.reranker)


async def _next(requests: AsyncIterator[retriever_pb2.BatchSearchRequest]) -> retriever_pb2.BatchSearchRequest | None:
    return await anext(requests, None)


async def _parts(requests: AsyncIterator[retriever_pb2.IngestPassagesRequest]) -> AsyncIterator[Part]:
    async for request in requests:
        yield Part(request.index, tuple(to_passage(passage) for passage in request.passages))


def _given(message: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def to_index_settings(message: retriever_pb2.IndexSettings) -> IndexSettings:
    """Raises InvalidArgument INDEX_SETTINGS_INVALID."""
    return IndexSettings(encoder=message.encoder, language=message.language, **_given(message, "bm25_k1", "bm25_b"))


def to_search_settings(message: retriever_pb2.SearchSettings) -> SearchSettings:
    """Raises InvalidArgument SEARCH_SETTINGS_INVALID."""
    mode = _MODES.get(message.mode)
    if mode is None:
        raise InvalidArgument("SEARCH_SETTINGS_INVALID", "no search mode {mode}", mode=message.mode, field="settings.mode")
    given = _given(message, "k", "window", "fusion_k", "lexical_weight", "dense_weight", "rerank")
    return SearchSettings(mode=mode, filters=tuple(sorted(message.filters.items())), **given)


def to_passage(message: common_pb2.Passage) -> Passage:
    """The passage, unchecked."""
    metadata = tuple(sorted(message.metadata.items()))
    return Passage(message.id, message.text, message.document, message.title, message.heading, metadata)


def from_passage(passage: Passage) -> common_pb2.Passage:
    """The passage on the wire."""
    return common_pb2.Passage(
        id=passage.id,
        text=passage.text,
        document=passage.document,
        title=passage.title,
        heading=passage.heading,
        metadata=dict(passage.metadata),
    )


def from_index(index: Index) -> retriever_pb2.Index:
    """The index on the wire."""
    return retriever_pb2.Index(
        name=index.name,
        settings=retriever_pb2.IndexSettings(
            encoder=index.settings.encoder,
            bm25_k1=index.settings.bm25_k1,
            bm25_b=index.settings.bm25_b,
            language=index.settings.language,
        ),
        state=retriever_pb2.INDEX_STATE_SEALED if index.sealed else retriever_pb2.INDEX_STATE_OPEN,
        passage_count=index.passage_count,
        vector_dimensions=index.vector_dimensions,
        create_time=_timestamp(index.create_time),
        seal_time=_timestamp(index.seal_time) if index.seal_time else None,
        content_hash=index.content_hash,
    )


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def from_hit(hit: Hit) -> retriever_pb2.Hit:
    """The hit on the wire."""
    return retriever_pb2.Hit(
        passage=from_passage(hit.passage),
        rank=hit.rank,
        score=hit.score,
        lexical_rank=hit.lexical_rank,
        lexical_score=hit.lexical_score,
        dense_rank=hit.dense_rank,
        dense_score=hit.dense_score,
        rerank_score=hit.rerank_score,
    )
