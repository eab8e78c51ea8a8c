"""Fills the index that Haystack searches, by the library's own document store.

Way `tuned` leaves vectors out of `_source` by the store's `custom_mapping`; `documented` is the store's default mapping. Both keep vectors
as our index does, so that all contestants walk the same kind of graph.
"""

from __future__ import annotations

import asyncio
from typing import Any

from haystack import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.document_stores.elasticsearch import ElasticsearchDocumentStore

from benchmarks.elastic.contest import Task
from benchmarks.elastic.corpus import BATCH, DIMENSIONS, Corpus


async def main(task: Task) -> None:
    """Fills it."""
    vector = {"type": "dense_vector", "dims": DIMENSIONS, "similarity": "cosine", "index_options": {"type": "hnsw"}}
    strings = {"path_match": "*", "match_mapping_type": "string", "mapping": {"type": "keyword"}}
    mapping: dict[str, Any] = {
        "properties": {"embedding": vector, "content": {"type": "text"}},
        "dynamic_templates": [{"strings": strings}],
    }
    if task.way == "tuned":
        mapping["_source"] = {"excludes": ["embedding"]}
    store = ElasticsearchDocumentStore(hosts=task.url, index=task.index, request_timeout=600)
    settings = {"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "-1"}
    await store.async_client.indices.create(index=task.index, mappings=mapping, settings=settings)
    corpus = Corpus(task.seed)
    for batch in range(task.passages // BATCH):
        texts, vectors = corpus.passages(batch), corpus.passage_vectors(batch).tolist()
        documents = [
            Document(id=id_, content=text, embedding=vector, meta={"document": id_[:-1]})
            for id_, text, vector in zip(texts.ids, texts.texts, vectors, strict=True)
        ]
        await store.write_documents_async(documents, policy=DuplicatePolicy.OVERWRITE, refresh=False)
    await store.async_client.indices.forcemerge(index=task.index, max_num_segments=1)
    await store.async_client.indices.refresh(index=task.index)
    await store.close_async()


asyncio.run(main(Task.load()))
