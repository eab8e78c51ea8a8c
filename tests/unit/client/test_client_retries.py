"""What is sent again and what is not, and what of an error arrives, over a true gRPC server that fails as it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from tunetrial.client import ChannelSettings, GeneratorClient, GeneratorError, SyncGeneratorClient, generate_request
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc

from services.common import errors
from services.common.server import to_failure, to_status

AWAY = errors.Unavailable("ENGINE_UNAVAILABLE", "the engine of {model} is away", model="m")
BUSY = errors.ResourceExhausted("QUEUE_FULL", "{waiting} requests wait", waiting=9, retry_after_s=1.5)


@dataclass
class Told(generator_pb2_grpc.GeneratorServiceServicer):
    """Fails each rpc with the errors it was told, in turn, then answers; counts calls."""

    failures: list[errors.TunetrialError] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def _call(self, rpc: str, context: Any) -> None:
        self.calls[rpc] += 1
        if self.failures:
            status = to_status(self.failures.pop(0))
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(next(code for code in grpc.StatusCode if code.value[0] == status.code), status.message)

    def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        self._call("Generate", context)
        return pb.GenerateResponse(text="fine")

    def StreamGenerate(self, request: pb.StreamGenerateRequest, context: Any) -> Iterator[pb.StreamGenerateResponse]:  # noqa: N802
        if request.generate.model != "breaks":
            self._call("StreamGenerate", context)
        yield pb.StreamGenerateResponse(text="fi")
        if request.generate.model == "breaks":
            self._call("StreamGenerate", context)
        yield pb.StreamGenerateResponse()  # a part that only a later contract knows
        yield pb.StreamGenerateResponse(done=pb.GenerateResponse(text="fine"))

    def BatchGenerate(self, requests: Any, context: Any) -> Iterator[pb.BatchGenerateResponse]:  # noqa: N802
        self._call("BatchGenerate", context)
        for request in requests:
            if request.id == "unanswered":
                return
            yield pb.BatchGenerateResponse(id=request.id, failure=to_failure(BUSY))

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        self._call("ListModels", context)
        page = int(request.page_token or 0)
        return pb.ListModelsResponse(models=[pb.Model(name=f"m{page}")], next_page_token="" if page == 2 else str(page + 1))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def address(told: Told) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    generator_pb2_grpc.add_GeneratorServiceServicer_to_server(told, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def client(address: str) -> Iterator[SyncGeneratorClient]:
    with SyncGeneratorClient(address, settings=ChannelSettings(first_backoff_s=0.01)) as client:
        yield client


@pytest.fixture
async def async_client(address: str) -> AsyncIterator[GeneratorClient]:
    async with GeneratorClient(address, settings=ChannelSettings(first_backoff_s=0.01)) as client:
        yield client


async def test_a_call_is_sent_again_while_the_generator_is_unavailable(
    told: Told, client: SyncGeneratorClient, async_client: GeneratorClient
) -> None:
    told.failures = [AWAY] * 4
    assert client.generate("m", "p").text == "fine"
    assert told.calls["Generate"] == 5
    told.failures = [AWAY] * 4
    assert (await async_client.generate("m", "p")).text == "fine"
    assert told.calls["Generate"] == 10
    told.failures = [AWAY] * 2
    assert [part for part in client.stream_generate("m", "p") if isinstance(part, str)] == ["fi"]
    assert told.calls["StreamGenerate"] == 3


async def test_after_five_attempts_the_reason_of_the_last_is_the_error(
    told: Told, client: SyncGeneratorClient, async_client: GeneratorClient
) -> None:
    told.failures = [AWAY] * 10
    for number, call in enumerate((lambda: client.generate("m", "p"), lambda: async_client.generate("m", "p")), 1):
        with pytest.raises(GeneratorError, match=r"the engine of m is away \[ENGINE_UNAVAILABLE\]") as error:
            result = call()
            assert not isinstance(result, pb.GenerateResponse)
            await result
        assert (error.value.code, error.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
        assert error.value.metadata == {"model": "m"}
        assert told.calls["Generate"] == 5 * number


def test_one_attempt_sends_a_call_once(told: Told, address: str) -> None:
    told.failures = [AWAY]
    with SyncGeneratorClient(address, settings=ChannelSettings(attempts=1)) as client, pytest.raises(GeneratorError):
        client.generate("m", "p")
    assert told.calls["Generate"] == 1


def test_another_failure_is_not_sent_again_and_says_when_to_come_back(told: Told, client: SyncGeneratorClient) -> None:
    told.failures = [BUSY]
    with pytest.raises(GeneratorError) as error:
        client.generate("m", "p")
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert error.value.retry_after_s == 1.5
    assert error.value.metadata["waiting"] == "9"
    assert told.calls["Generate"] == 1


def test_a_failure_among_many_says_the_same_as_that_of_a_call(client: SyncGeneratorClient) -> None:
    ((name, failure),) = client.batch([("one", generate_request("m", "p"))])
    assert isinstance(failure, GeneratorError)
    assert (name, failure.code, failure.reason) == ("one", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert (failure.retry_after_s, failure.metadata["waiting"]) == (1.5, "9")


async def test_a_batch_that_ends_with_requests_unanswered_is_an_error(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    requests = [(name, generate_request("m", "p")) for name in ("one", "unanswered")]
    for in_flight in (1, 3):
        found = []
        with pytest.raises(GeneratorError, match="without a result for unanswered"):
            for name, _ in client.batch(requests, in_flight=in_flight):
                found.append(name)
        with pytest.raises(GeneratorError, match="without a result for"):
            async for name, _ in async_client.batch(requests, in_flight=in_flight):
                found.append(name)
        assert found == ["one", "one"]


async def test_what_has_begun_is_not_sent_again(told: Told, client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    told.failures = [AWAY]
    pieces: list[object] = []
    with pytest.raises(GeneratorError, match="the engine of m is away"):
        for part in client.stream_generate("breaks", "p"):
            pieces.append(part)
    assert (pieces, told.calls["StreamGenerate"]) == (["fi"], 1)
    told.failures = [AWAY]
    with pytest.raises(GeneratorError, match="the engine of m is away"):
        list(client.batch([("one", generate_request("m", "p"))]))
    assert told.calls["BatchGenerate"] == 1
    told.failures = [AWAY]
    with pytest.raises(GeneratorError) as error:
        [result async for result in async_client.batch([("one", generate_request("m", "p"))])]
    # The reason is not always there: grpc.aio loses it when a request is still being written.
    assert error.value.code is grpc.StatusCode.UNAVAILABLE
    assert told.calls["BatchGenerate"] == 2


async def test_a_part_of_a_later_contract_is_passed_over(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    expected = ["fi", pb.GenerateResponse(text="fine")]
    assert list(client.stream_generate("m", "p")) == expected
    assert [part async for part in async_client.stream_generate("m", "p")] == expected


async def test_all_pages_of_models_are_read(client: SyncGeneratorClient, async_client: GeneratorClient) -> None:
    assert [model.name for model in client.models()] == ["m0", "m1", "m2"]
    assert await async_client.models() == client.models()


@pytest.mark.parametrize("in_flight", [0, -1])
async def test_a_batch_needs_room_for_one(client: SyncGeneratorClient, async_client: GeneratorClient, in_flight: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(client.batch([], in_flight=in_flight))
    with pytest.raises(ValueError, match="at least 1"):
        [result async for result in async_client.batch([], in_flight=in_flight)]
