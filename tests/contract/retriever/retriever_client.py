"""What tests of the retriever say to it, in short."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tunetrial.common.v1 import common_pb2
from tunetrial.retriever.v1 import retriever_pb2 as pb
from tunetrial.retriever.v1 import retriever_pb2_grpc


def passage(id: str, text: str, document: str = "", **metadata: str) -> common_pb2.Passage:  # noqa: A002  the field's name
    return common_pb2.Passage(id=id, text=text, document=document, metadata=metadata)


@dataclass
class Client:
    """One index at a time, with a name of its own."""

    stub: retriever_pb2_grpc.RetrieverServiceAsyncStub
    name: str = field(default_factory=lambda: f"t-{uuid4().hex}")

    async def create(self, **settings: object) -> pb.Index:
        request = pb.CreateIndexRequest(name=self.name, settings=pb.IndexSettings(**settings))
        return (await self.stub.CreateIndex(request)).index

    async def ingest(self, passages: Iterable[common_pb2.Passage], part: int = 100) -> pb.IngestPassagesResponse:
        rows = list(passages)
        parts = [rows[start : start + part] for start in range(0, max(1, len(rows)), part)]
        return await self.stub.IngestPassages(pb.IngestPassagesRequest(index=self.name, passages=each) for each in parts)

    async def seal(self) -> pb.Index:
        return (await self.stub.SealIndex(pb.SealIndexRequest(name=self.name))).index

    async def get(self) -> pb.Index:
        return (await self.stub.GetIndex(pb.GetIndexRequest(name=self.name))).index

    async def delete(self) -> None:
        await self.stub.DeleteIndex(pb.DeleteIndexRequest(name=self.name))

    async def made(self, passages: Iterable[common_pb2.Passage], **settings: object) -> pb.Index:
        await self.create(**settings)
        await self.ingest(passages)
        return await self.seal()

    async def search(self, query: str, mode: pb.SearchMode.ValueType = pb.SEARCH_MODE_HYBRID, **settings: object) -> list[pb.Hit]:
        request = pb.SearchRequest(index=self.name, query=query, settings=pb.SearchSettings(mode=mode, **settings))
        return list((await self.stub.Search(request)).hits)

    async def ids(self, query: str, mode: pb.SearchMode.ValueType = pb.SEARCH_MODE_HYBRID, **settings: object) -> list[str]:
        return [hit.passage.id for hit in await self.search(query, mode, **settings)]


@contextmanager
def refused(code: grpc.StatusCode, reason: str, field: str = "") -> Iterator[None]:
    """The call fails with this status, this ErrorInfo and, where given, this field in BadRequest."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value
    status = rpc_status.from_call(caught.value)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    assert (info.reason, info.domain) == (reason, "tunetrial"), caught.value.details()
    if field:
        assert [violation.field for violation in request.field_violations] == [field]
