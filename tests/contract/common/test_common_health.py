"""Health that follows what a service needs: a process whose store is a file, which a test takes away and brings back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

NAME = "tunetrial.judge.v1.JudgeService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

PROCESS = """
import asyncio, sys
from pathlib import Path
from services.common import telemetry
from services.common.errors import Unavailable
from services.common.server import Service, serve
from services.common.settings import ServerSettings
from tunetrial.judge.v1 import judge_pb2_grpc

store = Path("store")

async def ready():
    Path("asked").touch()
    said = store.read_text() if store.exists() else "away"
    if said == "away":
        raise Unavailable("STORE_AWAY", "no store at {path}", path=store)
    if said == "slow":
        await asyncio.sleep(3600)
    if said == "fault":
        raise KeyError("store")

settings = ServerSettings()
telemetry.set_up("judge", settings)
add = lambda server: judge_pb2_grpc.add_JudgeServiceServicer_to_server(judge_pb2_grpc.JudgeServiceServicer(), server)
asyncio.run(serve(Service("tunetrial.judge.v1.JudgeService", add, ready=ready), settings))
"""


@dataclass(frozen=True)
class Running:
    """The process, its folder and its health."""

    process: asyncio.subprocess.Process
    folder: Path
    health: Any

    async def status(self, service: str) -> int:
        return (await self.health.Check(health_pb2.HealthCheckRequest(service=service))).status

    async def becomes(self, expected: int) -> None:
        async with asyncio.timeout(60):
            async for response in self.health.Watch(health_pb2.HealthCheckRequest(service=NAME)):
                if response.status == expected:
                    return

    def store(self, says: str) -> None:
        partial = self.folder / "store.partial"
        partial.write_text(says)
        partial.replace(self.folder / "store")

    async def asked(self, times: int) -> None:
        """Returns once the probe has run so many times more."""
        for _ in range(times):
            (self.folder / "asked").unlink(missing_ok=True)
            await _until((self.folder / "asked").exists)

    async def log(self) -> list[dict[str, Any]]:
        """What was said of health, once the process has ended."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await self.process.wait() == 0
        # Libraries may have written lines of their own.
        lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] in ("serving", "not serving")]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  another process makes it so
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Running]:
    root = Path(__file__).parents[3]
    own = {"PYTHONPATH": f"{root}:{root / 'protos'}", "TUNETRIAL_PORT_FILE": "port", "TUNETRIAL_HEALTH_INTERVAL_S": "0.2"}
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROCESS, env={**os.environ, **own}, cwd=folder, stdout=log, stderr=log
        )
    try:
        await _until((folder / "port").exists)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{(folder / 'port').read_text()}") as channel:
            yield Running(process, folder, health_pb2_grpc.HealthStub(channel))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_service_starts_without_what_it_needs_and_serves_once_it_is_there(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.asked(3)
        # The process is well, and to start it again would not help: only the service's own name says that it cannot work.
        assert (await service.status(""), await service.status(NAME)) == (SERVING, NOT_SERVING)
        service.store("here")
        await service.becomes(SERVING)
        assert await service.status("") == SERVING


async def test_health_follows_the_store_with_one_log_line_for_each_change(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        service.store("here")
        await service.becomes(SERVING)
        await service.asked(3)
        service.store("away")
        await service.becomes(NOT_SERVING)
        assert await service.status("") == SERVING
        await service.asked(3)
        service.store("here")
        await service.becomes(SERVING)
        said = await service.log()
    # The file may have come before or after the first look at it.
    assert [line["event"] for line in said[-3:]] == ["serving", "not serving", "serving"]
    assert len(said) <= 4
    assert (said[-2]["reason"], said[-2]["message"]) == ("STORE_AWAY", "no store at store")


@pytest.mark.parametrize(("says", "reason"), [("slow", "PROBE_TIMED_OUT"), ("fault", "PROBE_FAILED")])
async def test_a_probe_that_hangs_or_is_broken_counts_as_failing_and_is_asked_again(tmp_path: Path, says: str, reason: str) -> None:
    async with running(tmp_path) as service:
        service.store("here")
        await service.becomes(SERVING)
        service.store(says)
        await service.becomes(NOT_SERVING)
        await service.asked(2)
        service.store("here")
        await service.becomes(SERVING)
        said = await service.log()
    assert [line["event"] for line in said[-3:]] == ["serving", "not serving", "serving"]
    assert said[-2]["reason"] == reason


async def test_sigterm_ends_a_service_that_still_waits_for_what_it_needs(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        service.store("slow")
        await service.asked(1)
        assert {line["event"] for line in await service.log()} <= {"not serving"}
