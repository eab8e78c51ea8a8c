"""What goes to Elasticsearch and what its answers mean, against a server that says what a test wants: licences, 429, lost shards."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from services.common.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ResourceExhausted, TunetrialError, Unavailable
from services.retriever.__main__ import elastic_indexes
from services.retriever.domain import Mode, Passage, Query, SearchSettings, Vectors
from services.retriever.elastic_client import failure
from services.retriever.elastic_index import ElasticIndexes
from services.retriever.elastic_settings import ElasticsearchSettings

SEALED = {
    "t-a.passages": {
        "aliases": {"t-a": {}},
        "mappings": {
            "_meta": {
                "tunetrial": {
                    "format": 1,
                    "name": "a",
                    "settings": {"encoder": "e", "bm25_k1": 1.2, "bm25_b": 0.75, "language": ""},
                    "create_time": "2026-01-01T00:00:00+00:00",
                    "seal_time": "2026-01-02T00:00:00+00:00",
                    "passage_count": 3,
                    "vector_dimensions": 0,
                    "content_hash": "c0ffee",
                }
            },
            "properties": {"vector": {"type": "dense_vector", "dims": 2}},
        },
    }
}
VECTOR = Vectors(2, np.array([1, 0], np.float32).tobytes())
TWO = Vectors(2, np.array([[1, 0], [0, 1]], np.float32).tobytes())


class Server:
    """Answers by method and path; keeps what it was asked."""

    def __init__(self, major: int) -> None:
        self.major, self.port = major, 0
        self.asked: list[tuple[str, str, str]] = []
        self.queries: list[str] = []
        self.answers: dict[str, Callable[[str], tuple[int, Any]]] = {
            "GET /_cluster/health": lambda _: (200, {"status": "green"}),
            "GET /t-a.passages": lambda _: (200, SEALED),
        }

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.queries.append(request.query_string)
        self.asked.append((f"{request.method} {request.path}", request.headers.get("Accept", ""), body))
        if f"compatible-with={self.major}" not in request.headers.get("Accept", "") and self.major < 9:
            return self._json(400, {"error": {"type": "media_type_header_exception", "reason": "Accept version"}, "status": 400})
        status, said = self.answers[f"{request.method} {request.path}"](body)
        return self._json(status, said)

    def _json(self, status: int, said: Any) -> web.Response:
        kind = f"application/vnd.elasticsearch+json;compatible-with={self.major}"
        headers = {"X-Elastic-Product": "Elasticsearch", "Content-Type": kind}
        return web.Response(status=status, body=json.dumps(said).encode(), headers=headers)


Start = Callable[..., Awaitable[tuple[Server, ElasticIndexes]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    opened: list[tuple[web.AppRunner, ElasticIndexes]] = []

    async def make(major: int = 8, **settings: Any) -> tuple[Server, ElasticIndexes]:
        server = Server(major)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]
        indexes = elastic_indexes(ElasticsearchSettings(urls=f"http://127.0.0.1:{server.port}", prefix="t-", retries=0, **settings))
        opened.append((runner, indexes))
        return server, indexes

    yield make
    for runner, indexes in opened:
        await indexes.close()
        await runner.cleanup()


@pytest.mark.parametrize("major", [8, 9])
async def test_the_client_is_of_the_servers_major_version(start: Start, major: int) -> None:
    server, indexes = await start(major)
    assert (await indexes.get("a")).content_hash == "c0ffee"
    path, accept, _ = server.asked[-1]
    assert path == "GET /t-a.passages"
    assert f"compatible-with={major}" in accept


async def test_callers_at_the_start_share_one_attempt_and_one_who_leaves_does_not_end_it(start: Start) -> None:
    server, indexes = await start(9)
    hasty = asyncio.ensure_future(indexes.get("a"))
    others = [asyncio.ensure_future(indexes.get("a")) for _ in range(8)]
    await asyncio.sleep(0)
    hasty.cancel()
    assert {index.content_hash for index in await asyncio.gather(*others)} == {"c0ffee"}
    assert [path for path, _, _ in server.asked].count("GET /_cluster/health") == 1


async def test_a_red_cluster_is_away_and_back_when_it_is_not(start: Start) -> None:
    server, indexes = await start()
    server.answers["GET /_cluster/health/t-*"] = lambda _: (200, {"status": "red", "unassigned_shards": 2})
    with pytest.raises(Unavailable, match="2 shards"):
        await indexes.ready()
    server.answers["GET /_cluster/health/t-*"] = lambda _: (200, {"status": "yellow", "unassigned_shards": 2})
    await indexes.ready()


async def test_fusion_by_the_server_sends_its_retriever_and_returns_hits_without_legs(start: Start) -> None:
    server, indexes = await start(server_fusion=True)
    source = {"id": "p", "text": "tea", "document": "d", "title": "", "heading": "", "metadata": [["k", "v"]]}
    found = {"status": 200, "hits": {"hits": [{"_score": 0.03, "_source": source}]}}
    server.answers["POST /_msearch"] = lambda _: (200, {"responses": [found]})
    (hit,) = await indexes.search("a", Query("tea", VECTOR, SearchSettings(k=3, fusion_k=7, filters=(("k", "v"),))))
    assert hit.passage == Passage("p", "tea", "d", metadata=(("k", "v"),))
    assert (hit.rank, hit.score, hit.lexical_rank, hit.dense_rank) == (1, 0.03, None, None)
    body = json.loads(server.asked[-1][2].splitlines()[1])
    fusion = body["retriever"]["rrf"]
    lexical, dense = fusion["retrievers"]
    assert (body["size"], fusion["rank_constant"], fusion["rank_window_size"]) == (3, 7, 50)
    assert lexical["standard"]["query"]["bool"]["filter"] == dense["knn"]["filter"]
    assert dense["knn"]["query_vector"] == [1, 0]
    with pytest.raises(InvalidArgument, match="no weights"):
        await indexes.search("a", Query("tea", VECTOR, SearchSettings(lexical_weight=2)))


@pytest.mark.parametrize(
    "error",
    [
        {"type": "parsing_exception", "reason": "unknown retriever [rrf]"},
        {"type": "security_exception", "reason": "current license is non-compliant for [Reciprocal Rank Fusion (RRF)]"},
    ],
)
async def test_fusion_that_the_server_cannot_or_may_not_do_is_a_clear_error(start: Start, error: dict[str, str]) -> None:
    server, indexes = await start(server_fusion=True)
    server.answers["POST /_msearch"] = lambda _: (200, {"responses": [{"status": 403, "error": {**error, "root_cause": [error]}}]})
    with pytest.raises(FailedPrecondition, match="unset TUNETRIAL_ELASTICSEARCH_SERVER_FUSION"):
        await indexes.search("a", Query("tea", VECTOR, SearchSettings()))


async def test_a_search_that_lost_a_shard_is_no_answer(start: Start) -> None:
    server, indexes = await start()
    lost = {"status": 503, "error": {"type": "search_phase_execution_exception", "reason": "all shards failed", "root_cause": []}}
    server.answers["POST /_msearch"] = lambda _: (200, {"responses": [lost]})
    with pytest.raises(Unavailable, match="all shards failed"):
        await indexes.search("a", Query("tea", None, SearchSettings(mode=Mode.LEXICAL)))
    assert json.loads(server.asked[-1][2].splitlines()[0])["allow_partial_search_results"] is False


async def test_a_busy_server_is_waited_for_and_what_it_refuses_is_named(start: Start) -> None:
    server, indexes = await start()
    bulks: list[list[str]] = []

    def bulk(body: str) -> tuple[int, Any]:
        ids = [json.loads(line)["create"]["_id"] for line in body.splitlines()[::2]]
        bulks.append(ids)
        busy = {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "queue full"}}
        items = {"p": {"status": 201} if len(bulks) > 1 else busy, "q": {"status": 409, "error": {"type": "version_conflict"}}}
        return 200, {"errors": True, "items": [{"create": {"_id": name, **items[name]}} for name in ids]}

    server.answers["PUT /_bulk"] = bulk
    report = await indexes.add("a", [Passage("p", "tea"), Passage("q", "coffee")], TWO)
    assert (report.added_count, report.skipped_count, report.failures) == (1, 1, ())
    assert bulks == [["p", "q"], ["p"]]
    # A bulk to a name that is no alias would make an index.
    assert [json.loads(line)["create"]["_index"] for line in server.asked[-1][2].splitlines()[::2]] == ["t-a.ingest"]
    assert server.queries[-1] == "require_alias=true"


async def test_a_passage_that_the_server_refuses_is_named_and_the_rest_goes_in(start: Start) -> None:
    server, indexes = await start()
    opened = {"t-a.passages": {**SEALED["t-a.passages"], "aliases": {"t-a.ingest": {}}}}
    server.answers["GET /t-a.passages"] = lambda _: (200, opened)
    server.answers["POST /t-a.passages/_refresh"] = lambda _: (200, {})
    server.answers["POST /t-a.passages/_count"] = lambda _: (200, {"count": 1})
    error = {"type": "document_parsing_exception", "reason": "failed", "caused_by": {"type": "x", "reason": "zero magnitude"}}
    items = [{"create": {"_id": "p", "status": 400, "error": error}}, {"create": {"_id": "q", "status": 201}}]
    server.answers["PUT /_bulk"] = lambda _: (200, {"errors": True, "items": items})
    report = await indexes.add("a", [Passage("p", "tea"), Passage("q", "coffee")], TWO)
    (failed,) = report.failures
    assert (report.added_count, failed.id, failed.reason) == (1, "p", "PASSAGE_REFUSED")
    assert "zero magnitude" in failed.message


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (404, {"error": {"type": "index_not_found_exception", "reason": "no such index"}}, NotFound, "no index a"),
        (
            403,
            {"error": {"type": "cluster_block_exception", "reason": "blocked by: [FORBIDDEN/8/index write (api)]"}},
            FailedPrecondition,
            "is sealed",
        ),
        (
            429,
            {"error": {"type": "cluster_block_exception", "reason": "[TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage]"}},
            ResourceExhausted,
            "disk",
        ),
        (429, {"error": {"type": "circuit_breaking_exception", "reason": "Data too large"}}, ResourceExhausted, "Data too large"),
        (401, {"error": {"type": "security_exception", "reason": "unable to authenticate user [u]"}}, FailedPrecondition, "credentials"),
        (403, {"error": {"type": "security_exception", "reason": "action is unauthorized"}}, FailedPrecondition, "credentials"),
        (503, {"error": {"type": "cluster_block_exception", "reason": "state not recovered"}}, Unavailable, "not recovered"),
        (502, "<html>Bad Gateway</html>", Unavailable, "Bad Gateway"),
        (
            400,
            {"error": {"root_cause": [{"type": "x", "reason": "the cause"}], "type": "y", "reason": "wrapped"}},
            Internal,
            "x: the cause",
        ),
    ],
)
def test_every_refusal_has_a_meaning(status: int, body: Any, kind: type[TunetrialError], words: str) -> None:
    error = failure("a", status, body)
    assert type(error) is kind
    assert words in error.message
