"""A retriever as its own process over a real Elasticsearch, with its health and its log."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunetrial.retriever.v1 import retriever_pb2_grpc

from tests.contract.retriever.retriever_client import Client

ROOT = Path(__file__).parents[2]
NAME = "tunetrial.retriever.v1.RetrieverService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class RetrieverProcess:
    """The process and what can be asked of it."""

    process: asyncio.subprocess.Process
    folder: Path
    channel: grpc.aio.Channel

    def client(self, name: str | None = None) -> Client:
        """Calls about one index: this one, or one with a name of its own."""
        stub = retriever_pb2_grpc.RetrieverServiceStub(self.channel)
        return Client(stub, name) if name else Client(stub)

    async def status(self, service: str) -> int:
        """What health says now."""
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        status: int = (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
        return status

    async def becomes(self, expected: int) -> None:
        """Returns once health says so of the service, while it says of the process that it is well."""
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        async with asyncio.timeout(120):
            async for response in health.Watch(health_pb2.HealthCheckRequest(service=NAME)):
                if response.status == expected:
                    break
        assert await self.status("") == SERVING
        assert self.process.returncode is None

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "log").read_text()


@asynccontextmanager
async def retriever(folder: Path, elasticsearch: Mapping[str, str], **settings: str) -> AsyncIterator[RetrieverProcess]:
    """Such a process; its port is open, whatever its health. `elasticsearch` are settings by their names without the prefix."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  it takes no time
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    own = {"port": "0", "port_file": str(folder / "port"), "data_dir": str(folder / "data"), "health_interval_s": "0.5", **settings}
    own |= {f"elasticsearch_{name}": value for name, value in elasticsearch.items()}
    environment |= {f"TUNETRIAL_{name.upper()}": value for name, value in own.items()}
    with (folder / "log").open("ab") as log:
        command = (sys.executable, "-m", "services.retriever")
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        while not (folder / "port").exists():
            assert process.returncode is None, (folder / "log").read_text()
            await asyncio.sleep(0.05)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{(folder / 'port').read_text()}") as channel:
            yield RetrieverProcess(process, folder, channel)
    finally:
        (folder / "port").unlink(missing_ok=True)
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0, (folder / "log").read_text()
