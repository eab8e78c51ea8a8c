"""The retriever's real server in this process, over any store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from tunetrial.retriever.v1 import retriever_pb2_grpc

from services.common.server import Service, start
from services.retriever.domain import Encoders, Indexes
from services.retriever.encoder import BUNDLED, SentenceEncoders
from services.retriever.retriever import Retriever
from services.retriever.servicer import RetrieverServicer
from services.retriever.settings import Settings


def default_encoders() -> SentenceEncoders:
    """Encoders as the service has them."""
    return SentenceEncoders(default=BUNDLED[0], device="cpu", threads=1, batch_size=32, max_loaded=2, max_queue=100, uri_roots="")


@asynccontextmanager
async def served(indexes: Indexes, encoders: Encoders, **parts: Any) -> AsyncIterator[retriever_pb2_grpc.RetrieverServiceAsyncStub]:
    """A stub of the server while it runs; `parts` are what a retriever may have beside the two."""
    servicer = RetrieverServicer(Retriever(indexes, encoders, BUNDLED[0], ingest_batch=64, **parts), batch_concurrency=8)
    name = "tunetrial.retriever.v1.RetrieverService"
    service = Service(name, lambda server: retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(servicer, server))
    server, port, _ = await start(service, Settings(port=0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield retriever_pb2_grpc.RetrieverServiceStub(channel)
    await server.stop(1)
