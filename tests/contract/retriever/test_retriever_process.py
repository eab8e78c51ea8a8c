"""The service as its own process: settings, port file, health, kill -9 in mid-ingest, SIGTERM."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from retriever_client import Client, passage
from tunetrial.retriever.v1 import retriever_pb2 as pb
from tunetrial.retriever.v1 import retriever_pb2_grpc

ROOT = Path(__file__).parents[3]
ROWS = [passage(f"p{n:03}", f"passage number {n} says that {n * 7919 % 1000} is a number") for n in range(160)]


async def start(folder: Path, **settings: str) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "HF_HUB_OFFLINE": "1"}
    environment |= {"TUNETRIAL_PORT": "0", "TUNETRIAL_PORT_FILE": str(folder / "port"), "TUNETRIAL_DATA_DIR": str(folder / "data")}
    environment |= {f"TUNETRIAL_{name.upper()}": value for name, value in settings.items()}
    command = (sys.executable, "-m", "services.retriever")
    return await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE, cwd=folder)


@asynccontextmanager
async def channel(process: asyncio.subprocess.Process, folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    while not (folder / "port").exists():
        assert process.returncode is None, (await process.stderr.read()).decode()  # type: ignore[union-attr]
        await asyncio.sleep(0.05)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{(folder / 'port').read_text()}") as opened:
        yield opened
    (folder / "port").unlink()


async def test_a_killed_ingest_is_sent_again_and_the_index_is_that_of_an_undisturbed_one(tmp_path: Path, client: Client) -> None:
    process = await start(tmp_path, ingest_batch="16")
    async with channel(process, tmp_path) as opened:
        killed = Client(retriever_pb2_grpc.RetrieverServiceStub(opened), "killed")
        await killed.create()
        acknowledged = await killed.ingest(ROWS[:40])
        dead = asyncio.Event()

        async def parts() -> AsyncIterator[pb.IngestPassagesRequest]:
            for first in range(0, 96, 16):
                yield pb.IngestPassagesRequest(index="killed", passages=ROWS[first : first + 16])
            await dead.wait()

        call = killed.stub.IngestPassages(parts())
        while (await killed.get()).passage_count < 60:  # noqa: ASYNC110  the service is asked, nothing tells
            await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        dead.set()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await process.wait()

    process = await start(tmp_path)
    async with channel(process, tmp_path) as opened:
        again = Client(retriever_pb2_grpc.RetrieverServiceStub(opened), "killed")
        left = (await again.get()).passage_count
        assert left >= 60 > acknowledged.added_count == 40
        done = await again.ingest(ROWS)
        assert (done.added_count, done.skipped_count) == (160 - left, left)
        sealed = await again.seal()
        checks = health_pb2_grpc.HealthStub(opened)
        for service in ("", "tunetrial.retriever.v1.RetrieverService"):
            status = (await checks.Check(health_pb2.HealthCheckRequest(service=service))).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        undisturbed = await client.made(ROWS)
        assert (sealed.passage_count, sealed.content_hash) == (160, undisturbed.content_hash)
        for query in ("number 7919", "which passage says 42"):
            assert await again.ids(query, k=20) == await client.ids(query, k=20)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ingest_batch": "0"}, "ingest_batch"),
        ({"encoder": "/no/such/folder"}, "encoder /no/such/folder cannot be loaded"),
    ],
)
async def test_a_wrong_setting_ends_the_process_with_its_name(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    process = await start(tmp_path, **settings)
    _, said = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 1
    assert words in said.decode()
    assert "Traceback" not in said.decode()
