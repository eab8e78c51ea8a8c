"""Hybrid search over synthetic passages: the service over gRPC against LanceDB called directly plus encoding, in one run.

    python benchmarks/retriever.py                 # 20,000 passages, 200 queries, about a minute
    python benchmarks/retriever.py --json          # the same as one JSON object

Three ways to answer each query, taken in turn: the service over gRPC (another process), its retriever in this process, and LanceDB's own
hybrid query with its RRF reranker after `SentenceTransformer.encode_query`, one thread each. LanceDB has one limit for legs and result: to
fuse the same 50 passages of each leg it must return 50; its time with a limit of 5 is given as well. What gRPC adds is taken from lexical
searches, where the jitter of the model does not hide it. Passages have random unit vectors instead of encoded ones, which changes no cost
of a search; queries are encoded by the real model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LANCEDB_LOG", "error")  # a warning with each query would be timed with it
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import grpc  # noqa: E402
import lancedb  # noqa: E402
import numpy as np  # noqa: E402
import structlog  # noqa: E402
from lancedb.rerankers import RRFReranker  # noqa: E402
from tunetrial.retriever.v1 import retriever_pb2, retriever_pb2_grpc  # noqa: E402

from services.retriever.domain import IndexSettings, Mode, Passage, SearchSettings, Vectors  # noqa: E402
from services.retriever.encoder import BUNDLED, SentenceEncoders  # noqa: E402
from services.retriever.lance_index import LanceIndexes  # noqa: E402
from services.retriever.retriever import Retriever  # noqa: E402

INDEX, DIMENSIONS, BATCH, TURN = "synthetic", 384, 4000, 10
COLUMNS = ["id", "text", "document", "title", "heading", "metadata"]


def sentence(words: list[str], rng: random.Random, length: int) -> str:
    """Words by Zipf's law, so that the lists of frequent ones are as long as in real text."""
    return " ".join(words[min(int(rng.paretovariate(0.9)), len(words)) - 1] for _ in range(length))


def vocabulary(rng: random.Random) -> list[str]:
    """20,000 pronounceable words."""
    return ["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))) for _ in range(20_000)]


async def make(folder: Path, count: int, words: list[str], rng: random.Random) -> None:
    """A sealed index of `count` passages of 40 to 120 words."""
    indexes = LanceIndexes(folder, max_passages=count)
    await indexes.create(INDEX, IndexSettings(BUNDLED[0]))
    numbers = np.random.default_rng(rng.randrange(2**32))
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        passages = [Passage(f"d{n // 10}#{n % 10}", sentence(words, rng, rng.randint(40, 120)), f"d{n // 10}") for n in rows]
        vectors = numbers.normal(size=(len(rows), DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        await indexes.add(INDEX, passages, Vectors(DIMENSIONS, vectors.tobytes()))
    await indexes.seal(INDEX)
    await indexes.close()


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[retriever_pb2_grpc.RetrieverServiceAsyncStub]:
    """The retriever as a process of its own, on a free port."""
    port = folder / "port"
    settings = {"TUNETRIAL_PORT": "0", "TUNETRIAL_PORT_FILE": str(port), "TUNETRIAL_DATA_DIR": str(folder / "data")}
    environment = os.environ | settings | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.retriever", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while not port.exists():
            if process.returncode is not None:
                sys.exit("the service did not start: run `python -m services.retriever` to see why")
            await asyncio.sleep(0.05)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port.read_text()}") as channel:
            yield retriever_pb2_grpc.RetrieverServiceStub(channel)
    finally:
        process.terminate()
        await process.wait()


async def timed(ways: dict[str, Callable[[str], Awaitable[object]]], queries: list[str], warm_up: int) -> dict[str, float]:
    """Median milliseconds of each way. They take turns of ten queries, each round beginning with another one, so that all see the same
    machine, with caches as warm as those of a service in use.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for start in range(0, len(queries), TURN):
        first = start // TURN % len(names)
        for name in names[first:] + names[:first]:
            for query in queries[start : start + TURN]:
                started = time.perf_counter()
                await ways[name](query)
                if start >= warm_up:
                    times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


async def measure(passages: int, queries: int, seed: int) -> dict[str, object]:
    """All figures of one run."""
    rng = random.Random(seed)  # noqa: S311  no secret
    words = vocabulary(rng)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        await make(folder / "data", passages, words, rng)
        shutil.copytree(folder / "data", folder / "here")
        asked = [sentence(words, rng, rng.randint(6, 14)) for _ in range(queries + 20)]

        encoders = SentenceEncoders(default=BUNDLED[0], device="cpu", threads=1, batch_size=32, max_loaded=1, max_queue=100, uri_roots="")
        await encoders.prepare()
        indexes = LanceIndexes(folder / "here", max_passages=passages)
        retriever = Retriever(indexes, encoders, BUNDLED[0], ingest_batch=256)
        model = (await encoders.get(BUNDLED[0]))._model
        table = await (await lancedb.connect_async(folder / "here" / INDEX)).open_table("sealed")

        async def direct(query: str, limit: int) -> object:
            vector = model.encode_query([query], normalize_embeddings=True, show_progress_bar=False)[0]
            both = table.query().nearest_to(vector).distance_type("dot").nearest_to_text(query, columns="text")
            return (await both.rerank(RRFReranker()).select(COLUMNS).limit(limit).to_list())[:5]

        async def encode(query: str) -> object:
            return model.encode_query([query], normalize_embeddings=True, show_progress_bar=False)

        by_words = retriever_pb2.SearchSettings(mode=retriever_pb2.SEARCH_MODE_LEXICAL)
        async with service(folder) as stub:
            ways: dict[str, Callable[[str], Awaitable[object]]] = {
                "grpc": lambda query: stub.Search(retriever_pb2.SearchRequest(index=INDEX, query=query)),
                "retriever_in_process": lambda query: retriever.search(INDEX, query, SearchSettings()),
                "lancedb_and_encoding": lambda query: direct(query, 50),
                "lancedb_limit_5_and_encoding": lambda query: direct(query, 5),
                "encoding_alone": encode,
                "grpc_lexical": lambda query: stub.Search(retriever_pb2.SearchRequest(index=INDEX, query=query, settings=by_words)),
                "retriever_in_process_lexical": lambda query: retriever.search(INDEX, query, SearchSettings(Mode.LEXICAL)),
                "grpc_get_index": lambda _: stub.GetIndex(retriever_pb2.GetIndexRequest(name=INDEX)),
            }
            p50 = await timed(ways, asked, warm_up=20)
        await indexes.close()
    return {
        "benchmark": "retriever",
        "passages": passages,
        "queries": queries,
        "seed": seed,
        "p50_ms": {name: round(value, 2) for name, value in p50.items()},
        "ratio": round(p50["grpc"] / p50["lancedb_and_encoding"], 3),
        "ratio_target": 1.3,
        "ratio_limit_5": round(p50["grpc"] / p50["lancedb_limit_5_and_encoding"], 3),
        "grpc_adds_ms": round(p50["grpc_lexical"] - p50["retriever_in_process_lexical"], 2),
        "grpc_adds_hybrid_ms": round(p50["grpc"] - p50["retriever_in_process"], 2),
        "grpc_adds_target_ms": 3.0,
        "load_1_min": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    found = asyncio.run(measure(given.passages, given.queries, given.seed))
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['passages']} passages, {found['queries']} queries, seed {found['seed']}, load {found['load_1_min']}; medians:")
    for name, value in found["p50_ms"].items():  # type: ignore[attr-defined]
        print(f"  {name:30} {value:8.2f} ms")
    print(f"ratio to LanceDB plus encoding   {found['ratio']} (target at most 1.3); with its limit at 5: {found['ratio_limit_5']}")
    print(
        f"gRPC adds at the median          {found['grpc_adds_ms']} ms (target at most 3); in hybrid mode {found['grpc_adds_hybrid_ms']} ms"
    )


if __name__ == "__main__":
    main()
