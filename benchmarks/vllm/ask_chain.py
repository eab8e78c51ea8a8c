"""Contestant: LangChain's retrieval chain: its Elasticsearch retriever (BM25), a prompt and ChatOpenAI, asynchronous."""

from __future__ import annotations

import asyncio
from typing import Any

from elasticsearch import AsyncElasticsearch
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_elasticsearch import AsyncElasticsearchRetriever
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from benchmarks.elastic.contest import Task, serve
from benchmarks.elastic.corpus import Corpus


def shown(passages: list[Document]) -> str:
    """Passages as the prompt has them."""
    return "".join(f"- {passage.page_content}\n" for passage in passages)


async def main(task: Task) -> None:
    """Answers rounds."""
    texts = Corpus(task.seed).questions(task.questions).texts

    def words(query: str) -> dict[str, Any]:
        return {"query": {"match": {"text": query}}, "size": task.k, "_source": ["text"], "track_total_hits": False}

    async with AsyncElasticsearch(task.url, connections_per_node=2 * task.callers, request_timeout=60) as client:
        retriever = AsyncElasticsearchRetriever(index_name=task.index, body_func=words, content_field="text", client=client)
        prompt = ChatPromptTemplate.from_messages([("user", "{passages}Question: {question}")])
        model = ChatOpenAI(
            base_url=f"{task.llm}/v1",
            api_key=SecretStr("none"),
            model="small",
            temperature=0,
            max_completion_tokens=task.tokens,
            timeout=600,
        )
        chain = {"passages": retriever | shown, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()

        async def ask(number: int) -> list[str]:
            return [(await chain.ainvoke(texts[number])).strip()]

        await serve(ask, task.callers)


asyncio.run(main(Task.load()))
