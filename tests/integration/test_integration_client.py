"""The clients against a running generator: both give the same, and every failure says why."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from tunetrial.client import ChannelSettings, GeneratorClient, GeneratorError, SyncGeneratorClient, answer_request, generate_request
from tunetrial.generator.v1 import generator_pb2

from tests.integration.generator_process import PASSAGES, QUESTION, SERVICE, Running, generator

# The base ends here only when it must.
ENDLESS, MANY = "the", 900


@pytest.fixture(scope="module")
def metrics_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[Running]:
    with generator(tmp_path_factory.mktemp("generator"), metrics_port=str(metrics_port)) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[SyncGeneratorClient]:
    with SyncGeneratorClient(running.address) as client:
        yield client


@pytest.fixture
async def async_client(running: Running) -> AsyncIterator[GeneratorClient]:
    async with GeneratorClient(running.address) as client:
        yield client


def same(message: Any) -> Any:
    """A result without what differs from one call to the next."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.usage.ClearField("latency_ms")
    return copy


def questions(count: int, bad: int = -1) -> Iterator[tuple[str, generator_pb2.AnswerRequest]]:
    for number in range(count):
        yield str(number), answer_request("nobody" if number == bad else "small", QUESTION, passages=PASSAGES)


def counted(requests: Iterable[Any], taken: list[str]) -> Iterator[Any]:
    for name, request in requests:
        taken.append(name)
        yield name, request


async def test_both_clients_answer_the_same(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    answer = client.answer("small", QUESTION, passages=PASSAGES, template="plain/v1")
    assert answer.text == "Revuna"
    assert [citation.passage_id for citation in answer.citations] == ["d#2"]
    assert [hit.passage.id for hit in answer.shown] == ["d#1", "d#2"]
    assert same(await async_client.answer("small", QUESTION, passages=PASSAGES, template="plain/v1")) == same(answer)
    sampled = client.generate("small", [("system", "Be brief."), ("user", QUESTION)], max_tokens=5, temperature=1.5, seed=3)
    assert (sampled.seed, sampled.usage.completion_tokens <= 5) == (3, True)
    again = await async_client.generate("small", [("system", "Be brief."), ("user", QUESTION)], max_tokens=5, temperature=1.5, seed=3)
    assert same(again) == same(sampled)
    models = client.models()
    assert [(model.name, model.kind) for model in models] == [("small", generator_pb2.MODEL_KIND_BASE)]
    assert await async_client.models() == models


async def test_a_stream_gives_passages_then_text_then_the_whole(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    whole = client.answer("small", QUESTION, passages=PASSAGES)
    parts = list(client.stream_answer("small", QUESTION, passages=PASSAGES))
    shown, *texts, done = parts
    assert isinstance(shown, generator_pb2.HitList)
    assert [hit.passage.id for hit in shown.hits] == ["d#1", "d#2"]
    assert "".join(str(text) for text in texts) == whole.text
    assert same(done) == same(whole)
    found = [part async for part in async_client.stream_answer("small", QUESTION, passages=PASSAGES)]
    assert [*found[:-1], same(found[-1])] == [*parts[:-1], same(done)]

    *texts, last = list(client.stream_generate("small", ENDLESS, max_tokens=8))
    assert isinstance(last, generator_pb2.GenerateResponse)
    assert len(texts) > 1
    assert "".join(str(text) for text in texts) == last.text
    *again, end = [part async for part in async_client.stream_generate("small", ENDLESS, max_tokens=8)]
    assert (again, same(end)) == (texts, same(last))


async def test_of_300_requests_one_is_bad_and_299_are_answered(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    def check(results: list[tuple[str, Any]]) -> None:
        assert sorted(int(name) for name, _ in results) == list(range(300))
        failed = {name: result for name, result in results if isinstance(result, GeneratorError)}
        assert list(failed) == ["7"]
        assert (failed["7"].code, failed["7"].reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert {result.text for name, result in results if name != "7"} == {"Revuna"}

    check(list(client.batch(questions(300, bad=7))))
    check([result async for result in async_client.batch(questions(300, bad=7))])


async def test_a_batch_takes_no_more_requests_ahead_than_it_may(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    taken: list[str] = []
    for done, _ in enumerate(client.batch(counted(questions(12), taken), in_flight=3)):
        # The one that is in hand has not made room yet.
        assert len(taken) <= done + 3
    assert len(taken) == 12
    taken.clear()
    done = 0
    async for _ in async_client.batch(counted(questions(12), taken), in_flight=3):
        assert len(taken) <= done + 3
        done += 1
    assert len(taken) == 12


async def test_a_batch_that_goes_on_on_new_streams_loses_nothing(running: Running) -> None:
    settings = ChannelSettings(batch_stream_s=0)  # a stream for each request
    with SyncGeneratorClient(running.address, settings=settings) as client:
        assert sorted(name for name, _ in client.batch(questions(5))) == list("01234")
        assert list(client.batch(())) == []
    async with GeneratorClient(running.address, settings=settings) as async_client:
        assert sorted([name async for name, _ in async_client.batch(questions(5))]) == list("01234")


async def test_an_error_of_the_requests_comes_after_the_results_of_those_before(
    client: SyncGeneratorClient, async_client: GeneratorClient
) -> None:
    def broken() -> Iterator[tuple[str, generator_pb2.AnswerRequest]]:
        yield from questions(3)
        raise LookupError("the file ends here")

    found: list[str] = []
    with pytest.raises(LookupError, match="the file ends here"):
        for name, _ in client.batch(broken()):
            found.append(name)
    assert sorted(found) == ["0", "1", "2"]
    found.clear()
    with pytest.raises(LookupError, match="the file ends here"):
        async for name, _ in async_client.batch(broken()):
            found.append(name)
    assert sorted(found) == ["0", "1", "2"]


async def test_requests_may_come_from_something_asynchronous(async_client: GeneratorClient) -> None:
    async def arriving() -> AsyncIterator[tuple[str, generator_pb2.GenerateRequest]]:
        for number in range(4):
            await asyncio.sleep(0)
            yield f"n{number}", generate_request("small", ENDLESS, max_tokens=2)

    assert sorted([name async for name, _ in async_client.batch(arriving())]) == ["n0", "n1", "n2", "n3"]


async def test_a_model_that_is_not_there_is_named_in_the_failure(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    with pytest.raises(GeneratorError) as error:
        client.answer("nobody", QUESTION, passages=PASSAGES)
    assert (error.value.code, error.value.reason, error.value.retry_after_s) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", None)
    assert "nobody" in error.value.metadata.values()
    with pytest.raises(GeneratorError) as async_error:
        await async_client.answer("nobody", QUESTION, passages=PASSAGES)
    assert async_error.value.metadata == error.value.metadata
    with pytest.raises(GeneratorError) as of_stream:
        async for _ in async_client.stream_answer("nobody", QUESTION):
            pass
    assert of_stream.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(GeneratorError, match="blank"):
        list(client.stream_answer("small", " "))


async def test_a_call_ends_at_its_deadline(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    late = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(GeneratorError) as error:
        client.generate("small", ENDLESS, max_tokens=MANY, timeout_s=0.2)
    assert error.value.code is late
    with pytest.raises(GeneratorError) as error:
        list(client.stream_generate("small", ENDLESS, max_tokens=MANY, timeout_s=0.2))
    assert error.value.code is late
    endless = {str(number): generate_request("small", ENDLESS, max_tokens=MANY) for number in range(3)}
    with pytest.raises(GeneratorError) as error:
        list(client.batch(endless.items(), timeout_s=0.2))
    assert error.value.code is late
    with pytest.raises(GeneratorError) as error:
        await async_client.generate("small", ENDLESS, max_tokens=MANY, timeout_s=0.2)
    assert error.value.code is late
    with pytest.raises(GeneratorError) as error:
        async for _ in async_client.batch(endless.items(), timeout_s=0.2):
            pass
    assert error.value.code is late


async def test_a_stream_that_is_left_is_cancelled_in_the_generator(
    client: SyncGeneratorClient, async_client: GeneratorClient, metrics_port: int
) -> None:
    def cancelled() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as page:
            for line in page.read().decode().splitlines():
                if line.startswith("tunetrial_calls_total") and 'code="CANCELLED"' in line and f"{SERVICE}/StreamGenerate" in line:
                    return float(line.rsplit(" ", 1)[1])
        return 0.0

    async def becomes(count: float) -> None:
        async with asyncio.timeout(60):
            while await asyncio.to_thread(cancelled) < count:  # noqa: ASYNC110  it is another process that is waited for
                await asyncio.sleep(0.05)

    before = cancelled()
    with closing(client.stream_generate("small", ENDLESS, max_tokens=MANY)) as parts:
        assert isinstance(next(parts), str)
    await becomes(before + 1)
    async with aclosing(async_client.stream_generate("small", ENDLESS, max_tokens=MANY)) as async_parts:
        assert isinstance(await anext(async_parts), str)
    await becomes(before + 2)

    async def read() -> None:
        async for _ in async_client.stream_generate("small", ENDLESS, max_tokens=MANY):
            begun.set()

    begun = asyncio.Event()
    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await becomes(before + 3)


async def test_a_batch_that_is_left_takes_no_further_requests(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    taken: list[str] = []
    with closing(client.batch(counted(questions(1000), taken), in_flight=4)) as results:
        next(results)
    assert client.answer("small", QUESTION, passages=PASSAGES).text == "Revuna"
    assert len(taken) <= 4
    taken.clear()
    async with aclosing(async_client.batch(counted(questions(1000), taken), in_flight=4)) as async_results:
        await anext(async_results)
    assert (await async_client.answer("small", QUESTION, passages=PASSAGES)).text == "Revuna"
    assert len(taken) <= 4


async def test_a_generator_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with generator(tmp_path / "generator") as running:
        client, async_client = SyncGeneratorClient(running.address), GeneratorClient(running.address)
        assert client.models() == await async_client.models()
        results = client.batch(questions(1000))
        next(results)
        parts = async_client.stream_generate("small", ENDLESS, max_tokens=MANY)
        assert isinstance(await anext(parts), str)
        running.process.kill()
        running.process.wait()
        with pytest.raises(GeneratorError) as error:
            await anext(parts)
            async for _ in parts:
                pass
        assert (error.value.code, error.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")
        for call in (client.models, lambda: list(results), lambda: list(client.stream_answer("small", QUESTION))):
            with pytest.raises(GeneratorError) as error:
                call()
            assert error.value.code is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(GeneratorError) as error:
            [result async for result in async_client.batch(questions(3))]
        assert error.value.code is grpc.StatusCode.UNAVAILABLE
        client.close()
        await async_client.close()
