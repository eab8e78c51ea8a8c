"""A retriever in memory that counts what it is asked: passages rank by words shared with the query, and a reranker turns them round."""

# ruff: noqa: N802  rpc names are the contract's

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from tunetrial.common.v1 import common_pb2
from tunetrial.retriever.v1 import retriever_pb2 as pb
from tunetrial.retriever.v1 import retriever_pb2_grpc

from flows.data.text import words


@dataclass
class FakeRetriever(retriever_pb2_grpc.RetrieverServiceServicer):
    """`reranker` is its name, "" for none; after `lasts` searches it is away, until that is set anew."""

    reranker: str = ""
    lasts: int = 10**9
    indexes: dict[str, list[common_pb2.Passage]] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)

    async def CreateIndex(self, request: pb.CreateIndexRequest, context: Any) -> pb.CreateIndexResponse:
        self.calls["create"] += 1
        self.indexes.setdefault(request.name, [])
        return pb.CreateIndexResponse(index=pb.Index(name=request.name))

    async def IngestPassages(self, requests: AsyncIterator[pb.IngestPassagesRequest], context: Any) -> pb.IngestPassagesResponse:
        async for request in requests:
            self.indexes[request.index] += request.passages
        return pb.IngestPassagesResponse()

    async def SealIndex(self, request: pb.SealIndexRequest, context: Any) -> pb.SealIndexResponse:
        self.sealed.add(request.name)
        return pb.SealIndexResponse()

    async def GetIndex(self, request: pb.GetIndexRequest, context: Any) -> pb.GetIndexResponse:
        if request.name not in self.sealed:
            await self._refuse(context, grpc.StatusCode.NOT_FOUND, "INDEX_NOT_FOUND")
        return pb.GetIndexResponse(index=pb.Index(name=request.name, state=pb.INDEX_STATE_SEALED))

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:
        self.calls["single"] += 1
        if request.settings.rerank and not self.reranker:
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "RERANKER_NOT_CONFIGURED")
        if request.index not in self.sealed:
            await self._refuse(context, grpc.StatusCode.NOT_FOUND, "INDEX_NOT_FOUND")
        return self._found(request)

    async def BatchSearch(self, requests: AsyncIterator[pb.BatchSearchRequest], context: Any) -> AsyncIterator[pb.BatchSearchResponse]:
        async for request in requests:
            if self.lasts <= 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            self.lasts -= 1
            self.calls["search"] += 1
            self.calls[f"search {pb.SearchMode.Name(request.search.settings.mode)} {request.search.settings.rerank}"] += 1
            yield pb.BatchSearchResponse(id=request.id, search=self._found(request.search))

    def _found(self, request: pb.SearchRequest) -> pb.SearchResponse:
        asked = set(words(request.query))
        scored = [(len(asked & set(words(passage.text))), passage) for passage in self.indexes[request.index]]
        best = sorted((one for one in scored if one[0]), key=lambda one: -one[0])[: request.settings.window]
        if request.settings.rerank:
            best = [(float(place), passage) for place, (_, passage) in enumerate(best)][::-1]
        hits = [
            pb.Hit(passage=passage, rank=rank, score=score, rerank_score=score if request.settings.rerank else None)
            for rank, (score, passage) in enumerate(best[: request.settings.k], 1)
        ]
        return pb.SearchResponse(hits=hits, reranker=self.reranker if request.settings.rerank else "")

    async def _refuse(self, context: Any, code: grpc.StatusCode, reason: str) -> None:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tunetrial"))
        status = status_pb2.Status(code=getattr(code_pb2, code.name), message=reason, details=[detail])
        await context.abort_with_status(rpc_status.to_status(status))


@asynccontextmanager
async def serving(fake: FakeRetriever) -> AsyncIterator[str]:
    """Its address while it runs."""
    server = grpc.aio.server()
    retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)
