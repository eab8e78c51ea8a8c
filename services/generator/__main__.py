"""Starts the generator: `python -m services.generator`, settings from `TUNETRIAL_*`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from tunetrial.generator.v1 import generator_pb2_grpc

from services.common import telemetry
from services.common.server import Service, serve
from services.generator.catalog import Catalog
from services.generator.generator import Generator
from services.generator.retriever_client import GrpcRetriever, credentials
from services.generator.servicer import GeneratorServicer
from services.generator.settings import Settings
from services.generator.sqlalchemy_aliases import SqlAlchemyAliases
from services.generator.transformers_engine import Limits, TransformersEngine

_ADMIN = ("LoadAdapter", "UnloadAdapter", "VerifyAdapter", "SetAlias")


def assemble(settings: Settings) -> tuple[Service, Callable[[], Awaitable[None]]]:
    """The service, and what loads the models. Nothing is loaded or contacted yet."""
    limits = Limits(settings.batch_size, settings.queue_limit, settings.prefill_tokens)
    engine = partial(TransformersEngine, dtype=settings.dtype, device=settings.device, threads=settings.threads, limits=limits)
    aliases = SqlAlchemyAliases(settings.data_dir)
    engines = {name: engine(name, path) for name, path in settings.models.items()}
    catalog = Catalog(engines, aliases, settings.uri_roots, settings.adapter_tolerance)
    retriever = None
    if settings.retriever_address:
        retriever = GrpcRetriever(settings.retriever_address, credentials(settings), settings.max_message_bytes)
    servicer = GeneratorServicer(Generator(catalog, retriever, settings.max_tokens), catalog, settings.batch_in_flight)

    async def close() -> None:
        await catalog.close()
        await aliases.close()
        if retriever is not None:
            await retriever.close()

    add = partial(generator_pb2_grpc.add_GeneratorServiceServicer_to_server, servicer)
    return Service("tunetrial.generator.v1.GeneratorService", add, admin_rpcs=_ADMIN, close=close), catalog.prepare


async def run(settings: Settings) -> None:
    """Serves until told to stop."""
    telemetry.set_up("generator", settings)
    service, prepare = assemble(settings)
    await serve(service, settings, prepare=prepare)


if __name__ == "__main__":
    try:
        asyncio.run(run(Settings()))
    except (ValueError, OSError) as error:
        sys.exit(f"generator: {error}")
