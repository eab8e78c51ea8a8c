"""The real server in process, with the real default encoder, over each store. A new store joins the suite by a line in STORES.

Stores in REAL_STORES need a server and take part with the option --real, instead of the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from retriever_client import Client
from retriever_server import default_encoders, served
from tunetrial.retriever.v1 import retriever_pb2_grpc

from services.retriever.__main__ import elastic_indexes
from services.retriever.domain import Indexes
from services.retriever.elastic_settings import ElasticsearchSettings
from services.retriever.encoder import SentenceEncoders
from services.retriever.lance_index import LanceIndexes
from tests.real.elastic_servers import ElasticServers

STORES: dict[str, Callable[[Path], Indexes]] = {"lance": lambda folder: LanceIndexes(folder, max_passages=2000)}
REAL_STORES = {
    "elasticsearch-8": ("8",),
    "elasticsearch-9-api-key": ("9", "api-key"),
}
"""Release of the server and, where it is secured, how the retriever shows who it is; other ways are in tests/real."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store" in metafunc.fixturenames:
        stores = REAL_STORES if metafunc.config.getoption("--real") else STORES
        metafunc.parametrize("store", stores, indirect=True, scope="session")


@pytest.fixture(scope="session")
def encoders() -> SentenceEncoders:
    return default_encoders()


@pytest.fixture(scope="session")
async def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Indexes]:
    if request.param in STORES:
        indexes = STORES[request.param](tmp_path_factory.mktemp(request.param))
        yield indexes
        await indexes.close()
        return
    servers: ElasticServers = request.getfixturevalue("elastic_servers")
    major, *secured = REAL_STORES[request.param]
    with servers.running(major, secured=bool(secured)) as node:
        indexes = elastic_indexes(ElasticsearchSettings(**node.client_settings(*secured)))
        yield indexes
        await indexes.close()


@pytest.fixture(scope="session")
async def stub(store: Indexes, encoders: SentenceEncoders) -> AsyncIterator[retriever_pb2_grpc.RetrieverServiceAsyncStub]:
    async with served(store, encoders) as stub:
        yield stub


@pytest.fixture
def client(stub: retriever_pb2_grpc.RetrieverServiceAsyncStub) -> Client:
    return Client(stub)
