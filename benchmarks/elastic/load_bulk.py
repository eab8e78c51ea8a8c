"""Contestant of ingest: `helpers.async_streaming_bulk`, fed with the documents that our service makes, vectors ready. Prints its seconds.

The index must be there and open. `way` is the number of the first passage and the size of a chunk: `0/500`.
"""

from __future__ import annotations

import asyncio
import json
import time

from elastic_transport import OrjsonSerializer
from elasticsearch8 import AsyncElasticsearch
from elasticsearch8.helpers import async_streaming_bulk

from benchmarks.elastic.contest import Task
from benchmarks.elastic.corpus import Corpus, batches
from services.retriever.domain import Passage
from services.retriever.elastic_documents import to_document


async def main(task: Task) -> None:
    """Sends them."""
    first, _, size = task.way.partition("/")
    corpus, actions = Corpus(task.seed), []
    for batch in batches(int(first), task.passages):
        texts = corpus.passages(batch)
        for id_, text, vector in zip(texts.ids, texts.texts, corpus.passage_vectors(batch), strict=True):
            actions.append({"_op_type": "create", "_id": id_, **to_document(Passage(id_, text, id_[:-1]), vector)})
    serializers = {"application/json": OrjsonSerializer()}  # as in our service: it takes vectors as they are
    async with AsyncElasticsearch(task.url, request_timeout=600, serializers=serializers) as client:
        began = time.perf_counter()
        async for _ in async_streaming_bulk(client, actions, index=task.index, chunk_size=int(size)):
            pass
        print(json.dumps({"seconds": time.perf_counter() - began}))


asyncio.run(main(Task.load()))
