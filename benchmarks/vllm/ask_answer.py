"""Contestant: one Answer of our generator, which asks our retriever and vLLM."""

from __future__ import annotations

import asyncio

import grpc
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc
from tunetrial.retriever.v1 import retriever_pb2

from benchmarks.elastic.contest import Task, serve
from benchmarks.elastic.corpus import Corpus


async def main(task: Task) -> None:
    """Answers rounds."""
    texts = Corpus(task.seed).questions(task.questions).texts
    settings = retriever_pb2.SearchSettings(mode=retriever_pb2.SEARCH_MODE_LEXICAL, k=task.k)
    retrieval = generator_pb2.Retrieval(index=task.index, settings=settings)
    decoding = generator_pb2.Decoding(max_tokens=task.tokens)
    async with grpc.aio.insecure_channel(task.url) as channel:
        stub = generator_pb2_grpc.GeneratorServiceStub(channel)

        async def ask(number: int) -> list[str]:
            request = generator_pb2.AnswerRequest(model="small", question=texts[number], retrieval=retrieval, decoding=decoding)
            return [(await stub.Answer(request)).text]

        await serve(ask, task.callers)


asyncio.run(main(Task.load()))
