"""Contestant of ingest: one stream of passages into our service. Prints its seconds; making the messages is not counted.

The index must be there and open. `way` is the number of the first passage.
"""

from __future__ import annotations

import asyncio
import json
import time

import grpc
from tunetrial.retriever.v1 import retriever_pb2_grpc

from benchmarks.elastic.contest import Task
from benchmarks.elastic.corpus import Corpus, batches
from benchmarks.elastic.messages import messages


async def main(task: Task) -> None:
    """Sends them."""
    ready = list(messages(Corpus(task.seed), task.index, batches(int(task.way), task.passages)))
    async with grpc.aio.insecure_channel(task.url) as channel:
        await channel.channel_ready()
        began = time.perf_counter()
        report = await retriever_pb2_grpc.RetrieverServiceStub(channel).IngestPassages(iter(ready))
        seconds = time.perf_counter() - began
    if report.added_count != task.passages:
        raise SystemExit(f"{report.added_count} of {task.passages} passages were added")
    print(json.dumps({"seconds": seconds}))


asyncio.run(main(Task.load()))
