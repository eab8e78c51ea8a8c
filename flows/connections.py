"""The services as a trial uses them: found by address, in a stack left running, or started here at the first need. Knows no stage."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import grpc

from flows.clients import Clients, addresses_from_environment, explain
from flows.errors import UserError
from flows.local_stack import LocalStack, running_stack

Request = TypeVar("Request")
Result = TypeVar("Result")


class Services:
    """Stubs of services that are ready: of a `stack` of one's own, or, without one, at the `addresses` given."""

    def __init__(self, addresses: Mapping[str, str], stack: LocalStack | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        self._stack, self._say = stack, say
        self._clients = Clients(addresses)

    @contextlib.asynccontextmanager
    async def use(self, service: str) -> AsyncIterator[Clients]:
        """Clients with this service ready; failures of calls inside become ServiceError, or say that the process died."""
        if self._stack is not None:
            if not self._stack.started:
                self._say("starting the services")
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


@contextlib.asynccontextmanager
async def running_services(home: Path) -> AsyncIterator[Services]:
    """Services that run already: by address, or left running in this home. Raises UserError when there are none."""
    addresses = addresses_from_environment() or running_stack(home)
    if not addresses:
        raise UserError(f"no services are running in {home}: start them with `tunetrial up`, or set TUNETRIAL_GENERATOR_ADDRESS")
    services = Services(addresses)
    try:
        yield services
    finally:
        await services.close()


async def exchange(
    call: Callable[[AsyncIterator[Request]], Any], requests: Mapping[str, Request], in_flight: int, go_on: Callable[[], bool] = lambda: True
) -> AsyncIterator[Any]:
    """Responses of a batch rpc as they come, with at most `in_flight` requests under way; `requests` are by id.

    No more are sent once `go_on` says no. A stream that lasted as long as the service lets any call last is opened again for the rest.
    """
    missing = dict(requests)
    while missing:
        before = len(missing)
        room = anyio.Semaphore(in_flight)
        try:
            async for response in call(_feed(tuple(missing.values()), room, go_on)):
                del missing[response.id]
                room.release()
                yield response
            return
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED or len(missing) == before:
                raise


async def _feed(requests: tuple[Request, ...], room: anyio.Semaphore, go_on: Callable[[], bool]) -> AsyncIterator[Request]:
    for request in requests:
        await room.acquire()
        if not go_on():
            return
        yield request


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results of all, in order. When one fails or all are cancelled, none is left running."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
