"""Contestant: the bare asynchronous client of Elasticsearch, with the very requests that our service sends, one question each.

Ways: `passages` sends the legs in one `_msearch` and reads the best k passages; `legs` sends the legs and stops there, so that it has ids
only; `source` has the legs bring all their passages, as one does who wants a single request.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import orjson
from elastic_transport import OrjsonSerializer
from elasticsearch8 import AsyncElasticsearch

from benchmarks.elastic.contest import Ask, Task, serve
from benchmarks.elastic.corpus import DIMENSIONS, Corpus
from services.retriever.domain import Query, SearchSettings, Vectors
from services.retriever.elastic_documents import Layout, first_limit, legs


def ways(client: AsyncElasticsearch, task: Task) -> dict[str, Ask]:
    """The ways by name."""
    texts = Corpus(task.seed).questions(task.questions).texts
    vectors = [Vectors(DIMENSIONS, vector.tobytes()) for vector in Corpus(task.seed).question_vectors(task.questions)]
    settings = SearchSettings(k=task.k, window=task.window)
    layout = Layout(shards=1, replicas=0, analyzer="standard", vector_index="hnsw", candidates=task.candidates)
    header = orjson.dumps({"index": task.index})

    async def ask_legs(number: int, **changes: object) -> list[list[str]]:
        query = Query(texts[number], vectors[number], settings)
        lines = []
        for leg in legs(query, first_limit(settings), layout):
            body = {name: value for name, value in {**leg, **changes}.items() if value is not None}
            lines += [header, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)]
        answers = (await client.msearch(searches=lines))["responses"]  # type: ignore[arg-type]  # bytes are lines as they are
        return [[hit["_id"] if changes else hit["fields"]["id"][0] for hit in answer["hits"]["hits"]] for answer in answers]

    def best(found: list[list[str]]) -> list[str]:
        scores: dict[str, float] = defaultdict(float)
        for leg in found:
            for rank, id_ in enumerate(leg[: task.window], 1):
                scores[id_] += 1 / (60 + rank)
        return sorted(scores, key=lambda id_: (-scores[id_], id_))[: task.k]

    async def only_legs(number: int) -> list[str]:
        return best(await ask_legs(number))

    async def passages(number: int) -> list[str]:
        found = await client.mget(index=task.index, ids=best(await ask_legs(number)), realtime=False)
        return [document["_source"]["id"] for document in found["docs"]]

    async def source(number: int) -> list[str]:
        return best(await ask_legs(number, _source=True, stored_fields=None, docvalue_fields=None))

    return {"legs": only_legs, "passages": passages, "source": source}


async def main(task: Task) -> None:
    """Answers rounds."""
    serializers = {"application/json": OrjsonSerializer()}
    async with AsyncElasticsearch(task.url, connections_per_node=task.callers, request_timeout=60, serializers=serializers) as client:
        await serve(ways(client, task)[task.way], task.callers)


asyncio.run(main(Task.load()))
