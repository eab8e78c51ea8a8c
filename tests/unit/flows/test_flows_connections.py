"""Batch calls: each request gets its response once, a stream that was ended for its length goes on, nothing is sent that should not be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest

from flows.connections import exchange


@dataclass(frozen=True)
class Response:
    id: str


@dataclass
class Service:
    """A batch rpc that ends each stream after so many responses."""

    a_stream: int = 1000
    code: grpc.StatusCode = grpc.StatusCode.DEADLINE_EXCEEDED
    streams: int = 0
    asked: list[str] = field(default_factory=list)

    async def call(self, requests: AsyncIterator[str]) -> AsyncIterator[Response]:
        self.streams += 1
        answered = 0
        async for request in requests:
            self.asked.append(request)
            if answered == self.a_stream:
                raise grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), grpc.aio.Metadata())
            answered += 1
            yield Response(request)


REQUESTS = {f"r{number}": f"r{number}" for number in range(10)}


async def test_every_request_gets_its_response() -> None:
    service = Service()
    assert [response.id async for response in exchange(service.call, REQUESTS, 3)] == list(REQUESTS)
    assert service.streams == 1


async def test_a_stream_that_lasted_too_long_goes_on_with_the_rest() -> None:
    service = Service(a_stream=4)
    assert [response.id async for response in exchange(service.call, REQUESTS, 3)] == list(REQUESTS)
    assert service.streams == 3


@pytest.mark.parametrize("service", [Service(a_stream=0), Service(a_stream=4, code=grpc.StatusCode.UNAVAILABLE)])
async def test_a_stream_without_progress_or_with_another_failure_is_an_error(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        _ = [response async for response in exchange(service.call, REQUESTS, 3)]
    assert service.streams == 1


async def test_nothing_more_is_sent_once_told_to_stop() -> None:
    service = Service()
    sent = 0

    def go_on() -> bool:
        nonlocal sent
        sent += 1
        return sent <= 4

    assert len([response async for response in exchange(service.call, REQUESTS, 3, go_on)]) == 4
    assert len(service.asked) == 4
