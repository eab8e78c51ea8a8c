"""A cluster that others use too, or that is too busy, or refuses a passage: on one server, with retrievers in processes of their own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest
from tunetrial.retriever.v1 import retriever_pb2 as pb

from services.retriever.__main__ import elastic_indexes
from services.retriever.elastic_settings import ElasticsearchSettings
from services.retriever.encoder import SentenceEncoders
from tests.contract.retriever.retriever_client import Client, passage, refused
from tests.contract.retriever.retriever_server import served
from tests.real.elastic_node import Node
from tests.real.elastic_servers import ElasticServers
from tests.real.retriever_process import NOT_SERVING, SERVING, RetrieverProcess, retriever

pytestmark = pytest.mark.timeout(1500)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
ROWS = [passage(f"p{n:03}", f"passage number {n} says that {n * 7919 % 1000} is a number") for n in range(300)]


@pytest.fixture(scope="module")
def node(elastic_servers: ElasticServers) -> Iterator[Node]:
    """A server that writes one request at a time and lets one wait: more are refused with 429."""
    with elastic_servers.running("8", thread_pool__write__size=1, thread_pool__write__queue_size=1) as node:
        yield node


@pytest.fixture(scope="module")
async def pair(node: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RetrieverProcess, RetrieverProcess]]:
    """Two retrievers that know nothing of each other."""
    folder, settings = tmp_path_factory.mktemp("pair"), node.client_settings()
    async with retriever(folder / "a", settings, ingest_batch="16") as a, retriever(folder / "b", settings, ingest_batch="16") as b:
        await a.becomes(SERVING)
        await b.becomes(SERVING)
        yield a, b


async def test_two_retrievers_that_write_into_one_index_leave_every_passage_once(
    pair: tuple[RetrieverProcess, RetrieverProcess],
) -> None:
    mine, theirs = pair[0].client(), pair[1].client()
    theirs.name = mine.name
    assert await asyncio.gather(mine.create(), theirs.create())
    reports = await asyncio.gather(mine.ingest(ROWS, 20), theirs.ingest(reversed(ROWS), 20), mine.ingest(ROWS[100:], 20))
    assert sum(report.added_count for report in reports) == len(ROWS)
    assert sum(report.skipped_count for report in reports) == len(ROWS) + 200
    assert not any(report.failures for report in reports)
    sealed = await asyncio.gather(mine.seal(), theirs.seal())
    assert {(index.state, index.passage_count) for index in sealed} == {(pb.INDEX_STATE_SEALED, len(ROWS))}
    alone = pair[1].client()
    undisturbed = await alone.made(ROWS)
    assert {index.content_hash for index in (*sealed, await mine.get())} == {undisturbed.content_hash}
    assert sorted(await theirs.ids("passage", pb.SEARCH_MODE_LEXICAL, k=1000)) == [row.id for row in ROWS]
    for query in ("number 7919", "which says 42"):
        assert await mine.ids(query, k=20) == await theirs.ids(query, k=20) == await alone.ids(query, k=20)


async def test_an_index_that_another_retriever_deleted_is_not_found_and_may_be_made_anew(
    pair: tuple[RetrieverProcess, RetrieverProcess],
) -> None:
    mine, theirs = pair[0].client(), pair[1].client()
    theirs.name = mine.name
    await mine.made(ROWS[:20])
    assert await theirs.ids("number 3", k=1) == await mine.ids("number 3", k=1) == ["p003"]
    await theirs.delete()
    for call in (lambda: mine.search("number 3"), mine.get, mine.seal, mine.delete, lambda: mine.ingest(ROWS)):
        with refused(NOT_FOUND, "INDEX_NOT_FOUND"):
            await call()
    await theirs.made(ROWS[20:40])
    assert (await mine.get()).passage_count == 20
    assert await mine.ids("number 33", k=1) == ["p033"]


async def test_an_index_that_is_deleted_in_mid_ingest_does_not_come_back(
    node: Node, pair: tuple[RetrieverProcess, RetrieverProcess]
) -> None:
    mine, theirs = pair[0].client(), pair[1].client()
    theirs.name = mine.name
    await mine.create()
    deleted = asyncio.Event()

    async def parts() -> AsyncIterator[pb.IngestPassagesRequest]:
        yield pb.IngestPassagesRequest(index=mine.name, passages=ROWS[:100])
        await deleted.wait()
        yield pb.IngestPassagesRequest(passages=ROWS[100:])

    call = mine.stub.IngestPassages(parts())
    while not (await theirs.get()).passage_count:  # noqa: ASYNC110  the service is asked, nothing tells
        await asyncio.sleep(0.02)
    await theirs.delete()
    deleted.set()
    with refused(NOT_FOUND, "INDEX_NOT_FOUND"):
        await call
    assert node.ask("GET", f"/_cat/indices/*{mine.name}*").text == ""
    assert node.ask("GET", f"/_cat/aliases/*{mine.name}*").text == ""


async def test_a_cluster_too_busy_to_write_is_waited_for(node: Node, pair: tuple[RetrieverProcess, RetrieverProcess]) -> None:
    def pool() -> dict[str, int]:
        (found,) = node.ask("GET", "/_nodes/stats/thread_pool").json()["nodes"].values()
        write: dict[str, int] = found["thread_pool"]["write"]
        return write

    def load() -> None:
        line = '{"index": {}}\n{"text": "' + " ".join(f"w{n}" for n in range(20_000)) + '"}\n'
        while not stop.is_set():
            node.ask("POST", "/noise/_bulk", lines=line * 60)

    stop, before = threading.Event(), pool()["rejected"]
    threads = [threading.Thread(target=load) for _ in range(2)]
    client = pair[0].client()
    await client.create()
    for thread in threads:
        thread.start()
    try:
        while ((now := pool())["active"], now["queue"]) != (1, 1):  # noqa: ASYNC110  the server is asked, nothing tells
            await asyncio.sleep(0.01)
        call = asyncio.ensure_future(client.ingest(ROWS))
        while pool()["rejected"] == before:
            assert not call.done(), "nothing was refused"
            await asyncio.sleep(0.05)
    finally:
        stop.set()
    done = await call
    for thread in threads:
        thread.join()
    assert (done.added_count, done.skipped_count, list(done.failures)) == (len(ROWS), 0, [])
    assert (await client.seal()).passage_count == len(ROWS)
    node.ask("DELETE", "/noise")


@asynccontextmanager
async def here(node: Node, encoders: SentenceEncoders, **settings: str) -> AsyncIterator[Client]:
    """A retriever in this process, with settings of its own."""
    indexes = elastic_indexes(ElasticsearchSettings(**node.client_settings(), **settings))
    async with served(indexes, encoders) as stub:
        yield Client(stub)
    await indexes.close()


async def test_a_passage_that_the_cluster_refuses_is_named_and_the_rest_goes_in(node: Node, encoders: SentenceEncoders) -> None:
    # Under this analyzer a text is one word, and a word of Lucene has at most 32,766 bytes.
    async with here(node, encoders, analyzer="keyword") as client:
        await client.create()
        done = await client.ingest([*ROWS[:10], passage("huge", "x" * 40_000), *ROWS[10:20]])
        assert (done.added_count, done.skipped_count) == (20, 0)
        assert [(failure.id, failure.reason) for failure in done.failures] == [("huge", "PASSAGE_REFUSED")]
        assert "32766" in done.failures[0].message
        assert (await client.seal()).passage_count == 20


async def test_a_language_that_the_cluster_cannot_analyse_is_refused_when_the_index_is_created(
    pair: tuple[RetrieverProcess, RetrieverProcess],
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INDEX_SETTINGS_INVALID", "settings.language"):
        await pair[0].client().create(language="French")


async def test_a_yellow_cluster_serves_and_one_that_lost_a_shard_of_ours_does_not(
    node: Node, pair: tuple[RetrieverProcess, RetrieverProcess]
) -> None:
    # A replica is the default, and one server has no place for it.
    client = pair[0].client()
    await client.made(ROWS[:10])
    assert node.ask("GET", f"/_cluster/health/*{client.name}*").json()["status"] == "yellow"
    await pair[0].becomes(SERVING)
    assert await client.ids("number 3", k=1) == ["p003"]

    nowhere = {"settings": {"index.routing.allocation.require._name": "nowhere"}}
    node.ask("PUT", "/somebody-elses?wait_for_active_shards=0&timeout=1s", nowhere)
    await asyncio.sleep(1)  # two looks of the probe
    await pair[0].becomes(SERVING)
    lost = "/tunetrial-lost.passages"
    node.ask("PUT", f"{lost}?wait_for_active_shards=0&timeout=1s", nowhere)
    await pair[0].becomes(NOT_SERVING)
    node.ask("DELETE", lost)
    await pair[0].becomes(SERVING)
    node.ask("DELETE", "/somebody-elses")


async def test_indexes_of_another_prefix_are_not_seen(node: Node, encoders: SentenceEncoders) -> None:
    async with here(node, encoders) as mine, here(node, encoders, prefix="other-") as theirs:
        theirs.name = mine.name
        await mine.made(ROWS[:5])
        with refused(NOT_FOUND, "INDEX_NOT_FOUND"):
            await theirs.get()
        await theirs.made(ROWS[5:10])
        listed = await theirs.stub.ListIndexes(pb.ListIndexesRequest())
        assert [index.name for index in listed.indexes] == [mine.name]
        await theirs.delete()
        assert (await mine.get()).passage_count == 5
