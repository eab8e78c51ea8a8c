"""The real server in process, with the real default encoder, over each store. A new store joins the suite by a line in STORES."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from retriever_client import Client
from tunetrial.retriever.v1 import retriever_pb2_grpc

from services.common.server import Service, start
from services.retriever.domain import Indexes
from services.retriever.encoder import BUNDLED, SentenceEncoders
from services.retriever.lance_index import LanceIndexes
from services.retriever.retriever import Retriever
from services.retriever.servicer import RetrieverServicer
from services.retriever.settings import Settings

STORES: dict[str, Callable[[Path], Indexes]] = {"lance": lambda folder: LanceIndexes(folder, max_passages=2000)}


@pytest.fixture(scope="session")
def encoders() -> SentenceEncoders:
    return SentenceEncoders(default=BUNDLED[0], device="cpu", threads=1, batch_size=32, max_loaded=2, max_queue=100, uri_roots="")


@pytest.fixture(scope="session", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Indexes:
    return STORES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
async def stub(store: Indexes, encoders: SentenceEncoders) -> AsyncIterator[retriever_pb2_grpc.RetrieverServiceAsyncStub]:
    servicer = RetrieverServicer(Retriever(store, encoders, BUNDLED[0], ingest_batch=64), batch_concurrency=8)
    name = "tunetrial.retriever.v1.RetrieverService"
    service = Service(name, lambda server: retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(servicer, server))
    server, port, _ = await start(service, Settings(port=0))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield retriever_pb2_grpc.RetrieverServiceStub(channel)
    await server.stop(1)


@pytest.fixture
def client(stub: retriever_pb2_grpc.RetrieverServiceAsyncStub) -> Client:
    return Client(stub)
