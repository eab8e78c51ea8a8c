"""The generator for programs that use asyncio. `synchronous.py` is the same for the others; what they share is beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc

from tunetrial.client.channel import ChannelSettings, Tls, access, options
from tunetrial.client.errors import GeneratorError, translated
from tunetrial.client.requests import Asking, Decoding, Request, Turn, answer_request, batch_request, generate_request
from tunetrial.client.responses import AnswerPart, Result, TextPart, answer_part, result_of, text_part, unanswered
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc

if TYPE_CHECKING:
    from tunetrial.generator.v1.generator_pb2_grpc import GeneratorServiceAsyncStub

    _BatchCall = grpc.aio.StreamStreamCall[generator_pb2.BatchGenerateRequest, generator_pb2.BatchGenerateResponse]

# What grpc.aio says of a call that ended while a request was written to it; the status that came is thrown away then.
_REASON_LOST = "Internal error from Core"
_PROBE_S = 10.0


class GeneratorClient:
    """A channel to a generator; close it, or use it in `async with`. Every failure of a call is a GeneratorError."""

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None = None,
        token: str = "",
        timeout_s: float = 120.0,
        settings: ChannelSettings | None = None,
    ) -> None:
        """`address` is host:port; calls are shared out among all replicas that the name stands for. The first call connects.

        `timeout_s` is the longest that a call may take, all attempts together; each call can have its own. A token needs `tls`, or an
        address on this machine. Raises ValueError for a token that would travel in the clear, OSError for a file that cannot be read.
        """
        self._settings, self._timeout_s = settings or ChannelSettings(), timeout_s
        credentials, self._metadata = access(address, tls, token)
        given = options(self._settings)
        self._channel = grpc.aio.secure_channel(address, credentials, given) if credentials else grpc.aio.insecure_channel(address, given)
        self._stub: GeneratorServiceAsyncStub = generator_pb2_grpc.GeneratorServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls that are under way and closes the channel."""
        await self._channel.close()

    async def generate(
        self, model: str, prompt: str | Iterable[Turn], *, timeout_s: float | None = None, **decoding: Unpack[Decoding]
    ) -> generator_pb2.GenerateResponse:
        """Text for one prompt; `generate_request` says what the arguments mean."""
        request = generate_request(model, prompt, **decoding)
        with translated():
            return await self._stub.Generate(request, timeout=self._limit(timeout_s), metadata=self._metadata)

    def stream_generate(
        self, model: str, prompt: str | Iterable[Turn], *, timeout_s: float | None = None, **decoding: Unpack[Decoding]
    ) -> AsyncGenerator[TextPart, None]:
        """The same in pieces: text as it comes, then the whole response. Closing the generator cancels the call."""
        request = generator_pb2.StreamGenerateRequest(generate=generate_request(model, prompt, **decoding))
        return self._stream_generate(request, self._limit(timeout_s))

    async def answer(
        self, model: str, question: str, *, timeout_s: float | None = None, **asking: Unpack[Asking]
    ) -> generator_pb2.AnswerResponse:
        """Answers a question over passages; `answer_request` says what the arguments mean."""
        request = answer_request(model, question, **asking)
        with translated():
            return await self._stub.Answer(request, timeout=self._limit(timeout_s), metadata=self._metadata)

    def stream_answer(
        self, model: str, question: str, *, timeout_s: float | None = None, **asking: Unpack[Asking]
    ) -> AsyncGenerator[AnswerPart, None]:
        """The same in pieces: the passages shown, text as it comes, then the whole answer. Closing the generator cancels the call."""
        request = generator_pb2.StreamAnswerRequest(answer=answer_request(model, question, **asking))
        return self._stream_answer(request, self._limit(timeout_s))

    async def batch(
        self,
        requests: Iterable[tuple[str, Request]] | AsyncIterable[tuple[str, Request]],
        *,
        in_flight: int = 128,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[tuple[str, Result], None]:
        """Yields (id, result) for each (id, request), in any order; a request that failed has a GeneratorError as its result.

        At most `in_flight` requests are taken ahead of the results that you took, so memory does not grow with their number. Raises
        GeneratorError when the stream itself breaks: ids without a result can be sent again, in another batch. An error of `requests` is
        raised after the results of what it gave. `timeout_s` is for the whole batch; without it there is no limit.
        """
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        source = aiter(requests) if isinstance(requests, AsyncIterable) else _walk(requests)
        room, pending = asyncio.Semaphore(in_flight), set[str]()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        more = True
        while more:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            call = self._stub.BatchGenerate(timeout=left, metadata=self._metadata)
            feeder = asyncio.create_task(_feed(call, source, room, pending, self._settings))
            try:
                with translated():
                    async for response in call:
                        pending.discard(response.id)
                        yield response.id, result_of(response)
                        room.release()
                if not pending:
                    more = await feeder
                if pending:
                    raise unanswered(pending)
            except GeneratorError as error:
                if error.message != _REASON_LOST:
                    raise
                raise await self._reason(deadline) from error
            finally:
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)
                call.cancel()

    async def models(self, *, timeout_s: float | None = None) -> list[generator_pb2.Model]:
        """Bases, adapters and aliases that are served. `timeout_s` is for each page of them."""
        models: list[generator_pb2.Model] = []
        request = generator_pb2.ListModelsRequest()
        while True:
            with translated():
                page = await self._stub.ListModels(request, timeout=self._limit(timeout_s), metadata=self._metadata)
            models.extend(page.models)
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    def _limit(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    async def _reason(self, deadline: float | None) -> GeneratorError:
        """Why a stream broke, when gRPC lost it: what still holds, another call learns."""
        if deadline is not None and time.monotonic() >= deadline:
            return GeneratorError(grpc.StatusCode.DEADLINE_EXCEEDED, "", "the batch took longer than its timeout_s")
        try:
            with translated():
                await self._stub.ListModels(generator_pb2.ListModelsRequest(page_size=1), timeout=_PROBE_S, metadata=self._metadata)
        except GeneratorError as error:
            return error
        return GeneratorError(grpc.StatusCode.UNAVAILABLE, "", "the stream broke while requests were written to it, gRPC lost why")

    async def _stream_generate(self, request: generator_pb2.StreamGenerateRequest, timeout_s: float) -> AsyncGenerator[TextPart, None]:
        call = self._stub.StreamGenerate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with translated():
                async for response in call:
                    if (part := text_part(response)) is not None:
                        yield part
        finally:
            call.cancel()

    async def _stream_answer(self, request: generator_pb2.StreamAnswerRequest, timeout_s: float) -> AsyncGenerator[AnswerPart, None]:
        call = self._stub.StreamAnswer(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with translated():
                async for response in call:
                    if (part := answer_part(response)) is not None:
                        yield part
        finally:
            call.cancel()


async def _feed(
    call: _BatchCall,
    source: AsyncIterator[tuple[str, Request]],
    room: asyncio.Semaphore,
    pending: set[str],
    settings: ChannelSettings,
) -> bool:
    """Writes requests until there are none or the stream has lasted long enough; returns whether there may be more."""
    until = time.monotonic() + settings.batch_stream_s
    try:
        while True:
            await room.acquire()
            try:
                request = batch_request(await anext(source), settings.max_message_bytes)
            except StopAsyncIteration:
                room.release()
                return False
            pending.add(request.id)
            try:
                await call.write(request)
            except (grpc.RpcError, asyncio.InvalidStateError):
                return False  # the call has ended; its reader learns why
            if time.monotonic() >= until:
                return True
    finally:
        await call.done_writing()


async def _walk(requests: Iterable[tuple[str, Request]]) -> AsyncIterator[tuple[str, Request]]:
    for request in requests:
        yield request
