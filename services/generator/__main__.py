"""Starts the generator: `python -m services.generator`, settings from `TUNETRIAL_*`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from tunetrial.generator.v1 import generator_pb2_grpc

from services.common import telemetry
from services.common.server import Service, serve
from services.generator.adapter_cache import AdapterCache
from services.generator.catalog import Catalog
from services.generator.domain import Engine
from services.generator.engine_settings import EngineSettings, OpenAISettings, TgiSettings, TransformersSettings, VllmSettings
from services.generator.generator import Generator
from services.generator.retriever_client import GrpcRetriever, credentials
from services.generator.servicer import GeneratorServicer
from services.generator.settings import Settings
from services.generator.sqlalchemy_models import SqlAlchemyModels

_ADMIN = ("LoadAdapter", "UnloadAdapter", "VerifyAdapter", "SetAlias", "RollbackAlias")


def assemble(settings: Settings) -> tuple[Service, Callable[[], Awaitable[None]]]:
    """The service, and what makes its engines ready. Nothing is loaded or contacted yet. Raises ValueError for engines that cannot be."""
    engines = {name: _engine(name, engine, settings) for name, engine in settings.all_engines().items()}
    catalog = Catalog(
        engines,
        SqlAlchemyModels(settings.data_dir),
        uri_roots=settings.uri_roots,
        tolerance=settings.adapter_tolerance,
        queue_limit=settings.queue_limit,
        put_back=settings.put_back,
        cache=AdapterCache(settings.data_dir / "adapters", settings.store_options, settings.adapter_cache_bytes),
    )
    retriever = None
    if settings.retriever_address:
        retriever = GrpcRetriever(settings.retriever_address, credentials(settings), settings.max_message_bytes)
    servicer = GeneratorServicer(Generator(catalog, retriever, settings.max_tokens), catalog, settings.batch_in_flight)

    async def close() -> None:
        await catalog.close()
        if retriever is not None:
            await retriever.close()

    add = partial(generator_pb2_grpc.add_GeneratorServiceServicer_to_server, servicer)
    service = Service("tunetrial.generator.v1.GeneratorService", add, admin_rpcs=_ADMIN, close=close, ready=catalog.ready)
    return service, partial(catalog.prepare, settings.watch_s)


def _engine(name: str, engine: EngineSettings, settings: Settings) -> Engine:
    # Each brings a library of its own, which a service without that engine does not load.
    match engine:
        case TransformersSettings():
            from services.generator.transformers_engine import Limits, TransformersEngine  # noqa: PLC0415

            limits = Limits(settings.batch_size, settings.prefill_tokens, settings.full_models)
            return TransformersEngine(
                name, engine.source, dtype=settings.dtype, device=settings.device, threads=settings.threads, limits=limits
            )
        case VllmSettings():
            from services.generator.vllm_engine import VllmEngine  # noqa: PLC0415

            return VllmEngine(name, engine)
        case TgiSettings():
            from services.generator.tgi_engine import TgiEngine  # noqa: PLC0415

            if engine.kubernetes is None:
                return TgiEngine(name, engine)
            from services.generator.kubernetes_rollout import KubernetesRollout  # noqa: PLC0415

            return TgiEngine(name, engine, KubernetesRollout(engine.kubernetes))
        case OpenAISettings():
            from services.generator.openai_engine import OpenAIEngine  # noqa: PLC0415

            return OpenAIEngine(name, engine)


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
