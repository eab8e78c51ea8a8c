"""Contestant: LangChain's EnsembleRetriever over its Elasticsearch retriever (BM25) and vector store (kNN), asynchronous.

It searches our index, in which vectors are kept out of `_source`, and asks for the fields it needs only: faster than an index that the
library makes itself, whose every passage carries its vector as text. Its client may open as many connections as there are requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from elasticsearch import AsyncElasticsearch
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_elasticsearch import AsyncDenseVectorStrategy, AsyncElasticsearchRetriever, AsyncElasticsearchStore
from langchain_huggingface import HuggingFaceEmbeddings

from benchmarks.elastic.contest import Task, serve
from benchmarks.elastic.corpus import Corpus


class Given(Embeddings):
    """Vectors of questions from a table, without a thread between."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Not asked."""
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self._vectors[text]

    async def aembed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self._vectors[text]


def document(hit: Mapping[str, Any]) -> Document:
    """A hit as the library's document."""
    source = hit["_source"]
    return Document(page_content=source["text"], metadata={"id": hit["_id"], "document": source.get("document", "")})


async def main(task: Task) -> None:
    """Answers rounds."""
    corpus = Corpus(task.seed)
    texts = corpus.questions(task.questions).texts
    if task.encoder:
        embeddings: Embeddings = HuggingFaceEmbeddings(
            model_name=task.encoder, model_kwargs={"device": "cpu"}, query_encode_kwargs={"normalize_embeddings": True}
        )
    else:
        embeddings = Given(dict(zip(texts, corpus.question_vectors(task.questions).tolist(), strict=True)))
    fields = ["text", "document"]

    def words(query: str) -> dict[str, Any]:
        return {"query": {"match": {"text": query}}, "size": task.window, "_source": fields, "track_total_hits": False}

    async with AsyncElasticsearch(task.url, connections_per_node=2 * task.callers, request_timeout=60) as client:
        lexical = AsyncElasticsearchRetriever(index_name=task.index, body_func=words, document_mapper=document, client=client)
        store = AsyncElasticsearchStore(task.index, embedding=embeddings, client=client, strategy=AsyncDenseVectorStrategy())
        near = {"k": task.window, "fetch_k": task.candidates, "doc_builder": document}
        dense = store.as_retriever(search_kwargs=near)
        ensemble = EnsembleRetriever(retrievers=[lexical, dense], weights=[0.5, 0.5], id_key="id")

        async def ask(number: int) -> list[str]:
            return [found.metadata["id"] for found in (await ensemble.ainvoke(texts[number]))[: task.k]]

        await serve(ask, task.callers)


asyncio.run(main(Task.load()))
