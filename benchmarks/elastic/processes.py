"""The processes of a benchmark: Elasticsearch, our service, contestants; what they use of processor and memory. Knows no figure."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from tunetrial.retriever.v1 import retriever_pb2_grpc

from benchmarks.elastic.contest import Round, Task
from tests.real.elastic_node import Node
from tests.real.elastic_release import RELEASES, install
from tests.real.environments import python_of

ROOT = Path(__file__).resolve().parents[2]
_TICK = os.sysconf("SC_CLK_TCK")
_HEAP = "-Xms1g -Xmx1g"
_LINE = 2**26  # the answer to a round is one line

ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
}


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def peak_mib(pid: int) -> float:
    """The most memory that a process had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


@dataclass
class _Roomier(Node):
    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"ES_JAVA_OPTS": _HEAP}


@contextmanager
def elasticsearch(folder: Path) -> Iterator[str]:
    """The address of a server of version 8.19 whose files are under `folder`, started for the time of the block."""
    folder.chmod(0o755)
    node = _Roomier.make(install(RELEASES["8"], folder), folder / "node")
    node.start()
    try:
        yield node.url
    finally:
        node.kill()


@dataclass(frozen=True, slots=True)
class Running:
    """Our service."""

    address: str
    pid: int
    stub: retriever_pb2_grpc.RetrieverServiceAsyncStub


@asynccontextmanager
async def service(url: str, folder: Path, *module: str, **settings: str) -> AsyncIterator[Running]:
    """Our service as a process of its own: `python -m *module`, on the Elasticsearch at `url`."""
    port = folder / "port"
    port.unlink(missing_ok=True)
    given = {"PORT": "0", "PORT_FILE": str(port), "DATA_DIR": str(folder / "service"), "EMBEDDING_CACHE": str(folder / "embeddings")}
    given |= {"ELASTICSEARCH_URLS": url, "ELASTICSEARCH_REPLICAS": "0", **settings}
    environment = ENVIRONMENT | {f"TUNETRIAL_{name}": value for name, value in given.items()}
    with (folder / "service.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", *module, env=environment, cwd=ROOT, stderr=log)
    try:
        while not port.exists():
            if process.returncode is not None:
                sys.exit(f"the service did not start: see {folder / 'service.log'}")
            await asyncio.sleep(0.05)
        address = f"127.0.0.1:{port.read_text()}"
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.channel_ready()
            yield Running(address, process.pid, retriever_pb2_grpc.RetrieverServiceStub(channel))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Contestant:
    """A process that answers rounds."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def round(self, questions: list[int]) -> Round:
        """What came of these questions."""
        return Round(**json.loads(await self._line(json.dumps(questions))))

    async def _line(self, line: str) -> bytes:
        assert self._process.stdin is not None  # noqa: S101  both are pipes
        assert self._process.stdout is not None  # noqa: S101
        if line:
            self._process.stdin.write(line.encode() + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            sys.exit(f"a contestant ended with code {await self._process.wait()}: its words are above")
        return answer


@asynccontextmanager
async def contestant(module: str, task: Task, *, guest: bool = False) -> AsyncIterator[Contestant]:
    """A contestant, by its module's name; a guest runs in the environment of the other libraries."""
    python = python_of("bench") if guest else Path(sys.executable)
    pipe = asyncio.subprocess.PIPE
    command = (str(python), "-m", f"benchmarks.{module}", task.dump())
    process = await asyncio.create_subprocess_exec(*command, env=ENVIRONMENT, cwd=ROOT, stdin=pipe, stdout=pipe, limit=_LINE)
    try:
        made = Contestant(process)
        await made._line("")
        yield made
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
