"""Elasticsearch away, killed, or silent: what a retriever says meanwhile, and that it goes on by itself with nothing lost or doubled."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import grpc
import pytest
from tunetrial.retriever.v1 import retriever_pb2 as pb

from tests.contract.retriever.retriever_client import Client, passage, refused
from tests.real.elastic_node import Node
from tests.real.elastic_servers import ElasticServers
from tests.real.retriever_process import NOT_SERVING, SERVING, RetrieverProcess, retriever

pytestmark = pytest.mark.timeout(1500)

UNAVAILABLE, REASON = grpc.StatusCode.UNAVAILABLE, "INDEX_STORE_UNAVAILABLE"
ROWS = [passage(f"p{n:04}", f"passage number {n} says that {n * 7919 % 1000} is a number", f"d{n % 7}") for n in range(600)]
QUERIES = ("number 7919", "which passage says 42", "passage 17 of document")


@pytest.fixture(scope="module", params=["8", "9"])
def node(request: pytest.FixtureRequest, elastic_servers: ElasticServers) -> Iterator[Node]:
    """A server that does not run yet."""
    node = elastic_servers.make(request.param)
    yield node
    node.kill()


@pytest.fixture(scope="module")
async def service(node: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RetrieverProcess]:
    """One process for all tests of this file: none of them may need a new one."""
    settings = {**node.client_settings(), "timeout_s": "10"}
    async with retriever(tmp_path_factory.mktemp("retriever"), settings, ingest_batch="32") as process:
        yield process


@pytest.fixture(scope="module")
async def undisturbed(node: Node, service: RetrieverProcess) -> Client:
    """A sealed index of ROWS that was made in peace."""
    if not node.healthy():
        node.start()
    await service.becomes(SERVING)
    client = service.client()
    await client.made(ROWS)
    return client


async def same(client: Client, undisturbed: Client) -> None:
    """The index holds every passage once, and finds what the undisturbed one finds."""
    index, expected = await client.get(), await undisturbed.get()
    assert (index.passage_count, index.content_hash) == (len(ROWS), expected.content_hash)
    assert sorted(await client.ids("passage", pb.SEARCH_MODE_LEXICAL, k=1000)) == [row.id for row in ROWS]
    for query in QUERIES:
        assert await client.ids(query, k=20) == await undisturbed.ids(query, k=20)


async def test_a_retriever_starts_without_the_cluster_and_serves_once_it_is_there(node: Node, service: RetrieverProcess) -> None:
    await service.becomes(NOT_SERVING)
    client = service.client()
    for call in (client.create, client.get, client.seal, client.delete, lambda: client.search("tea"), lambda: client.ingest(ROWS[:1])):
        with refused(UNAVAILABLE, REASON):
            await call()
    node.start()
    await service.becomes(SERVING)
    await client.made(ROWS[:5])
    assert await client.ids("passage number 3", k=1) == ["p0003"]


async def test_an_ingest_goes_on_after_a_kill_of_the_cluster_with_no_passage_lost_or_doubled(
    node: Node, service: RetrieverProcess, undisturbed: Client
) -> None:
    client = service.client()
    await client.create()
    assert (await client.ingest(ROWS[:100])).added_count == 100
    killed = asyncio.Event()

    async def parts() -> AsyncIterator[pb.IngestPassagesRequest]:
        for start in range(0, len(ROWS), 50):
            if start == len(ROWS) // 2:
                await killed.wait()
            yield pb.IngestPassagesRequest(index=client.name, passages=ROWS[start : start + 50])

    call = client.stub.IngestPassages(parts())
    while (await client.get()).passage_count < 150:  # noqa: ASYNC110  the service is asked, nothing tells
        await asyncio.sleep(0.02)
    node.kill()
    killed.set()
    with refused(UNAVAILABLE, REASON):
        await call
    await service.becomes(NOT_SERVING)

    node.start()
    await service.becomes(SERVING)
    # What was acknowledged outlived the kill; what was only visible may not have.
    left = (await client.get()).passage_count
    assert 100 <= left < len(ROWS)
    again = await client.ingest(ROWS)
    assert (again.added_count, again.skipped_count, list(again.failures)) == (len(ROWS) - left, left, [])
    await client.seal()
    await same(client, undisturbed)


async def test_searches_fail_one_by_one_while_the_cluster_is_killed_and_work_when_it_is_back(
    node: Node, service: RetrieverProcess, undisturbed: Client
) -> None:
    before = {query: await undisturbed.ids(query, k=20) for query in QUERIES}
    sent = [f"q{n}" for n in range(400)]
    failures, found = {}, {}

    async def requests() -> AsyncIterator[pb.BatchSearchRequest]:
        for n, name in enumerate(sent):
            query = QUERIES[n % len(QUERIES)]
            yield pb.BatchSearchRequest(
                id=name, search=pb.SearchRequest(index=undisturbed.name, query=query, settings=pb.SearchSettings(k=20))
            )

    async for response in undisturbed.stub.BatchSearch(requests()):
        if response.WhichOneof("result") == "failure":
            failures[response.id] = response.failure
        else:
            found[response.id] = [hit.passage.id for hit in response.search.hits]
            if len(found) == 30:
                node.kill()
    assert sorted([*found, *failures]) == sorted(sent)
    assert len(found) >= 30
    assert {(failure.code, failure.reason) for failure in failures.values()} == {(UNAVAILABLE.value[0], REASON)}
    for name, ids in found.items():
        assert ids == before[QUERIES[int(name[1:]) % len(QUERIES)]]
    with refused(UNAVAILABLE, REASON):
        await undisturbed.search(QUERIES[0])
    await service.becomes(NOT_SERVING)

    node.start()
    await service.becomes(SERVING)
    assert {query: await undisturbed.ids(query, k=20) for query in QUERIES} == before


async def test_a_seal_that_a_kill_of_the_cluster_broke_off_is_repeated(node: Node, service: RetrieverProcess, undisturbed: Client) -> None:
    client = service.client()
    await client.create()
    await client.ingest(ROWS)
    call = asyncio.ensure_future(client.seal())
    while node.ask("GET", f"/*{client.name}*/_settings/index.blocks.write").json() == {}:  # noqa: ASYNC110  until it has begun
        await asyncio.sleep(0.01)
    node.kill()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        assert error.code() is UNAVAILABLE, error  # noqa: PT017  it may also have been done already
    node.start()
    await service.becomes(SERVING)
    await client.seal()
    await same(client, undisturbed)


def changes(service: RetrieverProcess) -> list[dict[str, Any]]:
    """What it wrote of its health."""
    lines = [json.loads(line) for line in service.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] in ("serving", "not serving")]


async def test_a_cluster_that_takes_connections_and_answers_none_is_away(
    node: Node, service: RetrieverProcess, undisturbed: Client
) -> None:
    node.pause()
    try:
        with refused(UNAVAILABLE, REASON):
            await undisturbed.search(QUERIES[0])
        await service.becomes(NOT_SERVING)
    finally:
        node.resume()
    await service.becomes(SERVING)
    assert await undisturbed.ids(QUERIES[0], k=5)

    # One line for each change, with its reason, and no more than that.
    async with asyncio.timeout(120):
        while (said := changes(service))[-1]["event"] != "serving":  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.2)
    written = service.log()
    assert "Traceback" not in written
    assert "elastic_transport" not in written
    assert {line["reason"] for line in said if line["event"] == "not serving"} <= {REASON, "PROBE_TIMED_OUT"}
    assert all(before.get("reason") != after.get("reason") for before, after in pairwise(said))
