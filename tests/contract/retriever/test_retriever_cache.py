"""A text is encoded once, whatever index it goes into and however often the service is killed: seen from the wire, with every text
counted that reaches the model.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny_models
from grpc_health.v1 import health_pb2, health_pb2_grpc
from retriever_client import Client, passage
from retriever_server import served
from test_retriever_process import ROOT, channel, start
from tunetrial.common.v1 import common_pb2
from tunetrial.retriever.v1 import retriever_pb2 as pb
from tunetrial.retriever.v1 import retriever_pb2_grpc

from services.retriever.domain import Indexes
from services.retriever.embedding_cache import CachedEncoders, EmbeddingCache
from services.retriever.encoder import SentenceEncoders

TEXTS = [f"passage number {n} says that {n * 7919 % 1000} is a number" for n in range(60)] + ["日本の首都は東京です", "a" * 5000]
QUERY = "which number is 42"

# The service as `python -m services.retriever` runs it, with a line in a file for every passage that its model is given.
COUNTING = """
import json, runpy, sentence_transformers
encode = sentence_transformers.SentenceTransformer.encode_document
def counted(self, texts, **options):
    with open("seen", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(text) + "\\n" for text in texts)
    return encode(self, texts, **options)
sentence_transformers.SentenceTransformer.encode_document = counted
runpy.run_module("services.retriever", run_name="__main__", alter_sys=True)
"""


def corpus(name: str) -> list[common_pb2.Passage]:
    return [passage(f"{name}-{n}", text) for n, text in enumerate(TEXTS)]


@asynccontextmanager
async def running(folder: Path, **settings: object) -> AsyncIterator[tuple[Client, asyncio.subprocess.Process]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "HF_HUB_OFFLINE": "1"}
    environment |= {"TUNETRIAL_PORT": "0", "TUNETRIAL_PORT_FILE": str(folder / "port"), "TUNETRIAL_DATA_DIR": str(folder / "data")}
    environment |= {f"TUNETRIAL_{name.upper()}": str(value) for name, value in settings.items()}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", COUNTING, env=environment, stderr=pipe, cwd=folder)
    async with channel(process, folder) as opened:
        yield Client(retriever_pb2_grpc.RetrieverServiceStub(opened)), process
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
    await process.communicate()


def seen(folder: Path) -> list[str]:
    """Passages that the model was given since this was asked before."""
    file = folder / "seen"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    file.write_text("")
    return sorted(json.loads(line) for line in lines)


async def test_the_same_passages_in_another_index_never_reach_the_model_nor_after_a_kill(tmp_path: Path) -> None:
    encoder = tiny_models.encoder(tmp_path / "encoder")
    async with running(tmp_path, encoder=encoder) as (client, process):
        await client.made(corpus("first"))
        assert seen(tmp_path) == sorted(TEXTS)
        second = Client(client.stub)
        await second.made([*corpus("second"), passage("new", "a passage that is new"), passage("twice", "a passage that is new")])
        assert seen(tmp_path) == ["a passage that is new"]
        found = [(hit.passage.text, hit.score) for hit in await client.search(QUERY, pb.SEARCH_MODE_DENSE, k=62)]
        process.kill()

    reranker = tiny_models.cross_encoder(tmp_path / "reranker")
    async with running(tmp_path, encoder=encoder, reranker=reranker, rerank_window=7) as (client, _):
        await serving(tmp_path)
        await client.made(corpus("third"))
        assert seen(tmp_path) == []
        again = [(hit.passage.text, hit.score) for hit in await client.search(QUERY, pb.SEARCH_MODE_DENSE, k=62)]
        assert again == [(text, pytest.approx(score, abs=2e-5)) for text, score in found]
        # What is serving has its reranker.
        hits = await client.search(QUERY, k=20, rerank=True)
        assert [hit.HasField("rerank_score") for hit in hits] == [True] * 7 + [False] * 13


async def serving(folder: Path) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{(folder / 'port').read_text()}") as opened:
        request = health_pb2.HealthCheckRequest(service="tunetrial.retriever.v1.RetrieverService")
        async for response in health_pb2_grpc.HealthStub(opened).Watch(request):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return


@dataclass
class Given:
    """What a model was given, batch by batch."""

    passages: list[list[str]] = field(default_factory=list)
    queries: list[list[str]] = field(default_factory=list)
    waiting: Collection[Any] = ()
    """Queries that the model is to be given next."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Closed, it holds the model back once it was given queries."""

    def texts(self) -> list[str]:
        return sorted(text for batch in self.passages for text in batch)


@asynccontextmanager
async def with_cache(store: Indexes, encoder: Path, folder: Path) -> AsyncIterator[tuple[Client, Given]]:
    """A service over this cache whose parts are all new, and what its model is given."""
    encoders = SentenceEncoders(default=str(encoder), device="cpu", threads=1, batch_size=16, max_loaded=1, max_queue=100, uri_roots="")
    loaded: Any = await encoders.get(str(encoder))
    model, given = loaded._model, Given(waiting=loaded._queries)
    given.gate.set()
    model.encode_document = counted(model.encode_document, given.passages)
    model.encode_query = counted(model.encode_query, given.queries, given.gate)
    cache = EmbeddingCache(folder, 2**20)
    async with served(store, CachedEncoders(encoders, cache)) as stub:
        yield Client(stub), given
    await cache.close()


def counted(encode: Callable[..., Any], batches: list[list[str]], gate: threading.Event | None = None) -> Callable[..., Any]:
    def call(texts: list[str], **options: Any) -> Any:
        batches.append(texts)
        if gate is not None:
            gate.wait(60)
        return encode(texts, **options)

    return call


async def test_changed_weights_encode_anew_and_a_copy_of_the_encoder_does_not(store: Indexes, tmp_path: Path) -> None:
    encoder, cache = tiny_models.encoder(tmp_path / "encoder", seed=1), tmp_path / "cache"
    async with with_cache(store, encoder, cache) as (client, given):
        await client.made(corpus("first"), encoder=str(encoder))
        assert given.texts() == sorted(TEXTS)
        before = await client.ids(QUERY, pb.SEARCH_MODE_DENSE, k=10)

    tiny_models.encoder(encoder, seed=2)
    async with with_cache(store, encoder, cache) as (client, given):
        await client.made(corpus("first"), encoder=str(encoder))
        assert given.texts() == sorted(TEXTS)
        assert await client.ids(QUERY, pb.SEARCH_MODE_DENSE, k=10) != before

    copy = tiny_models.encoder(tmp_path / "copy", seed=1)
    async with with_cache(store, copy, cache) as (client, given):
        await client.made(corpus("first"), encoder=str(copy))
        assert given.texts() == []
        assert await client.ids(QUERY, pb.SEARCH_MODE_DENSE, k=10) == before


async def test_a_cache_that_cannot_be_used_costs_the_encoding_and_no_ingest(store: Indexes, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    encoder = tiny_models.encoder(tmp_path / "encoder")
    async with with_cache(store, encoder, tmp_path / "cache") as (client, given):
        for round_ in (1, 2):
            index = await Client(client.stub).made(corpus("first"), encoder=str(encoder))
            assert index.passage_count == len(TEXTS)
            assert given.texts() == sorted(TEXTS * round_)


async def test_a_new_index_says_how_much_of_a_passage_its_encoder_reads(store: Indexes, tmp_path: Path) -> None:
    encoder = tiny_models.encoder(tmp_path / "encoder")
    async with with_cache(store, encoder, tmp_path / "cache") as (client, _):
        request = pb.CreateIndexRequest(name=client.name, settings=pb.IndexSettings(encoder=str(encoder)))
        assert (await client.stub.CreateIndex(request)).encoder_max_tokens == tiny_models.MAX_TOKENS


async def test_queries_of_concurrent_callers_reach_the_model_together(store: Indexes, tmp_path: Path) -> None:
    encoder = tiny_models.encoder(tmp_path / "encoder")
    async with with_cache(store, encoder, tmp_path / "cache") as (client, given):
        await client.made(corpus("first"), encoder=str(encoder))
        asked = [f"query {n}" for n in range(40)]
        given.gate.clear()
        searches = asyncio.gather(*(client.search(query, pb.SEARCH_MODE_DENSE) for query in asked))
        while sum(map(len, given.queries)) + len(given.waiting) < len(asked):  # noqa: ASYNC110  the encoder has no event for it
            await asyncio.sleep(0.01)
        given.gate.set()
        await searches
    assert sorted(text for batch in given.queries for text in batch) == sorted(asked)
    # What came while the model was at work on its first batch goes in batches of 16.
    assert len(given.queries) <= 4


async def test_a_reranker_that_cannot_be_loaded_ends_the_process_with_its_name(tmp_path: Path) -> None:
    encoder = tiny_models.encoder(tmp_path / "encoder")
    process = await start(tmp_path, encoder=str(encoder), reranker="/no/such/folder")
    _, said = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 1
    assert "reranker /no/such/folder cannot be loaded" in said.decode()
    assert "Traceback" not in said.decode()
