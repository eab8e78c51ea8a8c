"""A server with TLS and credentials: each way in works, and each refusal says why and gives no secret away."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest

from services.common.errors import FailedPrecondition, TunetrialError, Unavailable
from services.retriever.__main__ import elastic_indexes
from services.retriever.elastic_index import ElasticIndexes
from services.retriever.elastic_settings import ElasticsearchSettings
from services.retriever.encoder import SentenceEncoders
from tests.contract.retriever.retriever_client import Client, passage
from tests.contract.retriever.retriever_server import served
from tests.real.elastic_node import PASSWORD, USER, Node, make_certificates
from tests.real.elastic_servers import ElasticServers
from tests.real.retriever_process import NOT_SERVING, retriever

pytestmark = pytest.mark.timeout(1500)

WRONG_PASSWORD = "hunter2-hunter2"
# The form of a key, but of no key that was ever made.
WRONG_KEY = "VnVhQ2ZHY0JDZGJrUW0tZTVhT3g6dWkybHAyYXhUTm1zeWFrdzl0dk5udw=="
ROWS = [passage(f"p{n}", f"passage number {n}") for n in range(5)]


@pytest.fixture(scope="module", params=["8", "9"])
def node(request: pytest.FixtureRequest, elastic_servers: ElasticServers) -> Iterator[Node]:
    with elastic_servers.running(request.param, secured=True) as node:
        yield node


@asynccontextmanager
async def opened(**settings: str) -> AsyncIterator[ElasticIndexes]:
    indexes = elastic_indexes(ElasticsearchSettings(**settings))
    yield indexes
    await indexes.close()


async def refusal(**settings: str) -> TunetrialError:
    async with opened(**settings) as indexes:
        with pytest.raises(TunetrialError) as caught:
            await indexes.ready()
        return caught.value


@contextmanager
def refused_words(words: str) -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert words in str(caught.value.details())
    assert WRONG_KEY not in str(caught.value)


async def test_each_kind_of_credentials_opens_the_cluster(node: Node, tmp_path: Path) -> None:
    key, password = tmp_path / "key", tmp_path / "password"
    key.write_text(node.api_key() + "\n")
    password.write_text(PASSWORD + "\n")
    ca = {"ca_file": str(node.ca)}
    for given in (
        {"user": USER, "password": PASSWORD, **ca},
        {"user": USER, "password_file": str(password), **ca},
        {"api_key": node.api_key(), **ca},
        {"api_key_file": str(key), **ca},
        {"api_key": node.api_key(), "fingerprint": node.fingerprint("http")},
        {"api_key": node.api_key(), "fingerprint": node.fingerprint("ca")},
    ):
        async with opened(urls=node.url, **given) as indexes:
            await indexes.ready()
            assert not await indexes.names()


async def test_wrong_credentials_are_refused_with_the_reason_and_without_the_secret(node: Node) -> None:
    ca = str(node.ca)
    for given in ({"user": USER, "password": WRONG_PASSWORD}, {"api_key": WRONG_KEY}, {}):
        error = await refusal(urls=node.url, ca_file=ca, **given)
        assert isinstance(error, FailedPrecondition), error  # waiting would not help
        assert "credentials" in error.message
        everything = f"{error!r} {error.message} {error.metadata} {error.__cause__!r}"
        assert WRONG_PASSWORD not in everything
        assert WRONG_KEY not in everything


async def test_a_certificate_that_is_not_trusted_is_refused_in_words(node: Node, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    who = {"user": USER, "password": PASSWORD}
    for given in ({"ca_file": str(tmp_path / "ca.crt")}, {}, {"fingerprint": "ab" * 32}):
        error = await refusal(urls=node.url, **who, **given)
        assert isinstance(error, Unavailable)
        assert "certificate" in error.message, error
        assert PASSWORD not in f"{error!r} {error.metadata}"


async def test_plain_http_to_a_server_with_tls_is_refused_in_words(node: Node) -> None:
    error = await refusal(urls=node.url.replace("https", "http"), user=USER, password=PASSWORD)
    assert isinstance(error, Unavailable)


async def test_a_key_with_the_least_rights_is_enough_and_one_with_less_says_what_it_may_not(node: Node, encoders: SentenceEncoders) -> None:
    enough = {"cluster": ["monitor"], "indices": [{"names": ["tunetrial-*"], "privileges": ["all"]}]}
    async with opened(urls=node.url, ca_file=str(node.ca), api_key=node.api_key(**enough)) as indexes, served(indexes, encoders) as stub:
        await indexes.ready()
        client = Client(stub)
        await client.made(ROWS)
        assert await client.ids("number 3", k=1) == ["p3"]
        reading = {"cluster": ["monitor"], "indices": [{"names": ["tunetrial-*"], "privileges": ["read", "view_index_metadata"]}]}
        key = node.api_key(**reading)
        async with opened(urls=node.url, ca_file=str(node.ca), api_key=key) as readable, served(readable, encoders) as reader:
            other = Client(reader, client.name)
            assert await other.ids("number 3", k=1) == ["p3"]
            with refused_words("may not"):
                await other.delete()
        await client.delete()


async def test_a_retriever_with_a_wrong_key_starts_and_says_so_on_the_wire_and_in_its_log(node: Node, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    await asyncio.to_thread(shutil.copy, node.ca, ca)
    async with retriever(tmp_path / "retriever", {"urls": node.url, "ca_file": str(ca), "api_key": WRONG_KEY}) as process:
        while "credentials" not in process.log():  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.05)
        await process.becomes(NOT_SERVING)
        with refused_words("credentials"):
            await process.client().create()
        written = process.log()
        assert "Traceback" not in written
        assert WRONG_KEY not in written
