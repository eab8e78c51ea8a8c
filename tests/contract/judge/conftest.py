"""A judge as it runs, beside an endpoint for it to ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from judge_endpoint import Endpoint
from tunetrial.judge.v1 import judge_pb2_grpc

from services.common.server import start
from services.judge.__main__ import assemble
from services.judge.settings import Settings

if TYPE_CHECKING:
    from judge_endpoint import Serve


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.close()


@asynccontextmanager
async def serve_judge(load: bool, **values: Any) -> AsyncIterator[judge_pb2_grpc.JudgeServiceAsyncStub]:
    settings = Settings(port=0, **values)
    service, prepare = assemble(settings)
    server, port, _ = await start(service, settings)
    if load:
        await prepare()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield judge_pb2_grpc.JudgeServiceStub(channel)
    await server.stop(0)
    assert service.close is not None
    await service.close()


@pytest.fixture
def judge_of(endpoint: Endpoint, tmp_path: Path) -> Serve:
    """Starts a judge whose engine openai asks the test's endpoint."""

    def make(**values: Any) -> AbstractAsyncContextManager[judge_pb2_grpc.JudgeServiceAsyncStub]:
        defaults = {
            "default_engine": "openai",
            "openai_base_url": endpoint.url,
            "openai_model": "judge-model",
            "openai_max_retries": 1,
            "data_dir": tmp_path / "data",
        }
        return serve_judge(False, **(defaults | values))

    return make


@pytest.fixture(scope="session")
async def reference_judge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[judge_pb2_grpc.JudgeServiceAsyncStub]:
    """A judge with the reference engine and its real encoder."""
    async with serve_judge(True, data_dir=tmp_path_factory.mktemp("rubrics"), batch_in_flight=8) as stub:
        yield stub
