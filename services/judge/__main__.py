"""The judge as a process: `python -m services.judge`, settings from the environment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tunetrial.judge.v1 import judge_pb2_grpc

from services.common import telemetry
from services.common.server import Service, serve
from services.judge import criteria
from services.judge.calibration import agreement
from services.judge.domain import Engine, EngineName, Judge
from services.judge.openai_client import ChatEndpoint, connect
from services.judge.openai_judge import OpenAIJudge
from services.judge.reference_judge import ReferenceJudge
from services.judge.rubric_store import JsonRubricStore
from services.judge.sentence_encoder import SentenceEncoder
from services.judge.servicer import JudgeServicer
from services.judge.settings import Settings


def assemble(settings: Settings) -> tuple[Service, Callable[[], Awaitable[None]]]:
    """The service, and what loads the parts that it cannot work without. Nothing is loaded or contacted yet."""
    shipped, default = criteria.shipped(), EngineName(settings.default_engine)
    encoder = SentenceEncoder(settings.encoder, settings.threads, settings.encoder_batch_size, settings.remembered_embeddings)
    engines: dict[EngineName, Engine] = {EngineName.REFERENCE: ReferenceJudge(encoder, shipped, settings.abstentions)}
    endpoint = _connect(settings) if settings.has_openai else None
    if endpoint is not None:
        engines[EngineName.OPENAI] = OpenAIJudge(
            endpoint,
            shipped,
            default_model=settings.openai_model,
            prices=settings.openai_prices,
            most_tokens=settings.openai_max_tokens,
            remembered_runs=settings.remembered_runs,
        )
    judge = Judge(engines, default, shipped, JsonRubricStore(settings.data_dir), agreement)
    servicer = JudgeServicer(judge, settings.batch_in_flight)

    async def prepare() -> None:
        if default is EngineName.REFERENCE:
            await encoder.load()

    async def close() -> None:
        await encoder.close()
        if endpoint is not None:
            await endpoint.close()

    add = judge_pb2_grpc.add_JudgeServiceServicer_to_server
    return Service("tunetrial.judge.v1.JudgeService", lambda server: add(servicer, server), close=close), prepare


def _connect(settings: Settings) -> ChatEndpoint:
    return connect(
        settings.openai_base_url,
        settings.read_api_key(),
        timeout_s=settings.openai_timeout_s,
        max_retries=settings.openai_max_retries,
        concurrency=settings.openai_concurrency,
        token_limit_field=settings.openai_token_limit_field,
    )


async def main() -> None:
    """Runs until told to stop."""
    settings = Settings()
    telemetry.set_up("judge", settings)
    service, prepare = assemble(settings)
    await serve(service, settings, prepare=prepare)


if __name__ == "__main__":
    asyncio.run(main())
