"""Contestant: Haystack's RAG pipeline: its Elasticsearch retriever (BM25), a prompt builder and OpenAIChatGenerator, by `run_async`."""

from __future__ import annotations

import asyncio

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from haystack_integrations.components.retrievers.elasticsearch import ElasticsearchBM25Retriever
from haystack_integrations.document_stores.elasticsearch import ElasticsearchDocumentStore

from benchmarks.elastic.contest import Task, serve
from benchmarks.elastic.corpus import Corpus

_USER = "{% for document in documents %}- {{ document.content }}\n{% endfor %}Question: {{ question }}"


def pipeline(store: ElasticsearchDocumentStore, task: Task) -> Pipeline:
    """The documented pipeline, without fuzzy matching, which no other contestant has."""
    made = Pipeline()
    made.add_component("retriever", ElasticsearchBM25Retriever(document_store=store, top_k=task.k, fuzziness="0"))
    made.add_component("prompt", ChatPromptBuilder(template=[ChatMessage.from_user(_USER)], required_variables=["documents", "question"]))
    settings = {"temperature": 0, "max_completion_tokens": task.tokens}
    model = OpenAIChatGenerator(
        api_key=Secret.from_token("none"), model="small", api_base_url=f"{task.llm}/v1", generation_kwargs=settings, timeout=600
    )
    made.add_component("model", model)
    made.connect("retriever.documents", "prompt.documents")
    made.connect("prompt.prompt", "model.messages")
    return made


async def main(task: Task) -> None:
    """Answers rounds."""
    texts = Corpus(task.seed).questions(task.questions).texts
    store = ElasticsearchDocumentStore(hosts=task.url, index=task.index, connections_per_node=2 * task.callers, request_timeout=60)
    assert store.async_client  # opened without asking the server's root, which this distribution does not answer  # noqa: S101
    answering = pipeline(store, task)

    async def ask(number: int) -> list[str]:
        query = texts[number]
        found = await answering.run_async({"retriever": {"query": query}, "prompt": {"question": query}})
        return [(found["model"]["replies"][0].text or "").strip()]

    await serve(ask, task.callers)
    await store.close_async()


asyncio.run(main(Task.load()))
