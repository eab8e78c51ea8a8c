"""Contestant: our retriever service, asked over gRPC."""

from __future__ import annotations

import asyncio

import grpc
from tunetrial.retriever.v1 import retriever_pb2, retriever_pb2_grpc

from benchmarks.elastic.contest import Task, serve
from benchmarks.elastic.corpus import Corpus


async def main(task: Task) -> None:
    """Answers rounds."""
    texts = Corpus(task.seed).questions(task.questions).texts
    settings = retriever_pb2.SearchSettings(k=task.k, window=task.window)
    async with grpc.aio.insecure_channel(task.url) as channel:
        stub = retriever_pb2_grpc.RetrieverServiceStub(channel)

        async def ask(number: int) -> list[str]:
            answer = await stub.Search(retriever_pb2.SearchRequest(index=task.index, query=texts[number], settings=settings))
            return [hit.passage.id for hit in answer.hits]

        await serve(ask, task.callers)


asyncio.run(main(Task.load()))
