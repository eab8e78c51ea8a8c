"""The generator's real server in this process, on a free port, over given engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from tunetrial.generator.v1 import generator_pb2_grpc

from services.common import server as common
from services.common.settings import ServerSettings
from services.generator.catalog import Catalog
from services.generator.domain import Engine
from services.generator.generator import Generator
from services.generator.servicer import GeneratorServicer
from services.generator.sqlalchemy_models import SqlAlchemyModels


@asynccontextmanager
async def served(
    engines: Mapping[str, Engine], data: Path, roots: str, *, queue_limit: int = 64, watch_s: float = 0.5, batch_in_flight: int = 32
) -> AsyncIterator[generator_pb2_grpc.GeneratorServiceAsyncStub]:
    """A stub of the service; `data` is where it keeps what it serves, under `roots` lie the adapters."""
    catalog = Catalog(engines, SqlAlchemyModels(data), uri_roots=roots, tolerance=0.05, queue_limit=queue_limit)
    servicer = GeneratorServicer(Generator(catalog, None, 512), catalog, batch_in_flight=batch_in_flight)
    service = common.Service(
        "tunetrial.generator.v1.GeneratorService",
        lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server),
    )
    server, port, _ = await common.start(service, ServerSettings(port=0))
    await catalog.prepare(watch_s)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield generator_pb2_grpc.GeneratorServiceStub(channel)
    finally:
        await server.stop(0)
        await catalog.close()
