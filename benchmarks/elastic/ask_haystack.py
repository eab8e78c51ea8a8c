"""Contestant: Haystack's pipeline of BM25 retriever, embedding retriever and joiner (reciprocal rank fusion), by its `run_async`.

Ways: `tuned` switches the retriever's fuzzy matching off, which no other contestant has, and is meant for an index whose `_source` leaves
vectors out; `documented` is as in the library's documentation.
"""

from __future__ import annotations

import asyncio

from haystack import Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder
from haystack_integrations.components.retrievers.elasticsearch import (
    ElasticsearchBM25Retriever,
    ElasticsearchEmbeddingRetriever,
)
from haystack_integrations.document_stores.elasticsearch import ElasticsearchDocumentStore

from benchmarks.elastic.contest import Task, serve
from benchmarks.elastic.corpus import Corpus


def pipeline(store: ElasticsearchDocumentStore, task: Task) -> Pipeline:
    """The documented pipeline; with an encoder, that of the documentation comes before the embedding retriever."""
    fuzziness = {"tuned": "0", "documented": "AUTO"}[task.way]
    made = Pipeline()
    made.add_component("words", ElasticsearchBM25Retriever(document_store=store, top_k=task.window, fuzziness=fuzziness))
    dense = ElasticsearchEmbeddingRetriever(document_store=store, top_k=task.window, num_candidates=task.candidates)
    made.add_component("meaning", dense)
    made.add_component("joiner", DocumentJoiner(join_mode="reciprocal_rank_fusion", top_k=task.k))
    made.connect("words", "joiner")
    made.connect("meaning", "joiner")
    if task.encoder:
        embedder = SentenceTransformersTextEmbedder(
            model=task.encoder, device=ComponentDevice.from_str("cpu"), progress_bar=False, normalize_embeddings=True
        )
        made.add_component("encoder", embedder)
        made.connect("encoder.embedding", "meaning.query_embedding")
    return made


async def main(task: Task) -> None:
    """Answers rounds."""
    corpus = Corpus(task.seed)
    texts = corpus.questions(task.questions).texts
    vectors = corpus.question_vectors(task.questions).tolist()
    store = ElasticsearchDocumentStore(hosts=task.url, index=task.index, connections_per_node=2 * task.callers, request_timeout=60)
    assert store.async_client  # opened without asking the server's root, which this distribution does not answer  # noqa: S101
    searching = pipeline(store, task)

    async def ask(number: int) -> list[str]:
        query = texts[number]
        encoding = {"encoder": {"text": query}} if task.encoder else {"meaning": {"query_embedding": vectors[number]}}
        found = await searching.run_async({"words": {"query": query}, **encoding})
        return [document.id for document in found["joiner"]["documents"]]

    await serve(ask, task.callers)
    await store.close_async()


asyncio.run(main(Task.load()))
