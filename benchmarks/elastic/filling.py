"""Indexes filled with the corpus. Knows no measurement."""

from __future__ import annotations

import asyncio
import sys

import grpc
from elasticsearch8 import AsyncElasticsearch
from tunetrial.retriever.v1 import retriever_pb2

from benchmarks.elastic.contest import Task
from benchmarks.elastic.corpus import Corpus, batches
from benchmarks.elastic.messages import messages
from benchmarks.elastic.processes import ENVIRONMENT, ROOT, Running
from services.retriever.encoder import BUNDLED
from tests.real.environments import python_of

PREFIX = "tunetrial-"
"""Of the names of our service's indexes and aliases."""


async def fill_ours(service: Running, index: str, corpus: Corpus, passages: int) -> bool:
    """A sealed index of so many passages; says whether it had to be made."""
    try:
        found = (await service.stub.GetIndex(retriever_pb2.GetIndexRequest(name=index))).index
        if found.state == retriever_pb2.INDEX_STATE_SEALED and found.passage_count == passages:
            return False
        await service.stub.DeleteIndex(retriever_pb2.DeleteIndexRequest(name=index))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
    settings = retriever_pb2.IndexSettings(encoder=BUNDLED[0])
    await service.stub.CreateIndex(retriever_pb2.CreateIndexRequest(name=index, settings=settings))
    await service.stub.IngestPassages(messages(corpus, index, batches(0, passages)))
    await service.stub.SealIndex(retriever_pb2.SealIndexRequest(name=index))
    return True


async def fill_haystack(url: str, task: Task) -> bool:
    """Haystack's index; says whether it had to be made."""
    async with AsyncElasticsearch(url, request_timeout=60) as client:
        if await client.indices.exists(index=task.index):
            if (await client.count(index=task.index))["count"] == task.passages:
                return False
            await client.indices.delete(index=task.index)
    command = (str(python_of("bench")), "-m", "benchmarks.elastic.load_haystack", task.dump())
    process = await asyncio.create_subprocess_exec(*command, env=ENVIRONMENT, cwd=ROOT)
    if await process.wait():
        sys.exit("Haystack's index was not made: its words are above")
    return True
