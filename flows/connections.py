"""The services as a trial uses them: found by address, in a stack left running, or started here at the first need. Knows no stage."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio
import grpc

from flows.clients import Clients, explain
from flows.local_stack import LocalStack

Request = TypeVar("Request")
Response = TypeVar("Response")


class Services:
    """Stubs of services that are ready: of a `stack` of one's own, or, without one, at the `addresses` given."""

    def __init__(self, addresses: Mapping[str, str], stack: LocalStack | None = None) -> None:
        self._stack = stack
        self._clients = Clients(addresses)

    @contextlib.asynccontextmanager
    async def use(self, service: str) -> AsyncIterator[Clients]:
        """Clients with this service ready; failures of calls inside become ServiceError, or say that the process died."""
        if self._stack is not None:
            self._clients.learn(service, await self._stack.address(service))
        with self.explained(service):
            yield self._clients

    @contextlib.contextmanager
    def explained(self, service: str) -> Iterator[None]:
        """Failures of calls inside become TrialError in words."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if self._stack is not None:
                self._stack.check(service)
            raise explain(service, error) from error

    async def close(self) -> None:
        """Closes channels and stops what was started here."""
        await self._clients.close()
        if self._stack is not None:
            await anyio.to_thread.run_sync(self._stack.stop)


async def exchange(call: Callable[[AsyncIterator[Request]], Any], requests: Iterator[Request], in_flight: int) -> AsyncIterator[Any]:
    """Responses of a batch rpc as they come, with at most `in_flight` requests under way. Ends when every request has its response."""
    room = anyio.Semaphore(in_flight)

    async def feed() -> AsyncIterator[Request]:
        for request in requests:
            await room.acquire()
            yield request

    async for response in call(feed()):
        room.release()
        yield response
