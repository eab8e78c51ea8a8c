"""The generator for programs without asyncio: the methods of `asynchronous.py`, from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Self, Unpack

import grpc

from tunetrial.client.channel import ChannelSettings, Tls, access, options
from tunetrial.client.errors import translated
from tunetrial.client.requests import Asking, Decoding, Request, Turn, answer_request, batch_request, generate_request
from tunetrial.client.responses import AnswerPart, Result, TextPart, answer_part, result_of, text_part, unanswered
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc


class SyncGeneratorClient:
    """A channel to a generator; close it, or use it in `with`. Every failure of a call is a GeneratorError."""

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None = None,
        token: str = "",
        timeout_s: float = 120.0,
        settings: ChannelSettings | None = None,
    ) -> None:
        """The arguments are those of GeneratorClient."""
        self._settings, self._timeout_s = settings or ChannelSettings(), timeout_s
        credentials, self._metadata = access(address, tls, token)
        given = options(self._settings)
        self._channel = grpc.secure_channel(address, credentials, given) if credentials else grpc.insecure_channel(address, given)
        self._stub = generator_pb2_grpc.GeneratorServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the calls that are under way and closes the channel."""
        self._channel.close()

    def generate(
        self, model: str, prompt: str | Iterable[Turn], *, timeout_s: float | None = None, **decoding: Unpack[Decoding]
    ) -> generator_pb2.GenerateResponse:
        """Text for one prompt; `generate_request` says what the arguments mean."""
        request = generate_request(model, prompt, **decoding)
        with translated():
            return self._stub.Generate(request, timeout=self._limit(timeout_s), metadata=self._metadata)

    def stream_generate(
        self, model: str, prompt: str | Iterable[Turn], *, timeout_s: float | None = None, **decoding: Unpack[Decoding]
    ) -> Generator[TextPart, None, None]:
        """The same in pieces: text as it comes, then the whole response. Closing the generator cancels the call."""
        request = generator_pb2.StreamGenerateRequest(generate=generate_request(model, prompt, **decoding))
        return self._stream_generate(request, self._limit(timeout_s))

    def answer(
        self, model: str, question: str, *, timeout_s: float | None = None, **asking: Unpack[Asking]
    ) -> generator_pb2.AnswerResponse:
        """Answers a question over passages; `answer_request` says what the arguments mean."""
        request = answer_request(model, question, **asking)
        with translated():
            return self._stub.Answer(request, timeout=self._limit(timeout_s), metadata=self._metadata)

    def stream_answer(
        self, model: str, question: str, *, timeout_s: float | None = None, **asking: Unpack[Asking]
    ) -> Generator[AnswerPart, None, None]:
        """The same in pieces: the passages shown, text as it comes, then the whole answer. Closing the generator cancels the call."""
        request = generator_pb2.StreamAnswerRequest(answer=answer_request(model, question, **asking))
        return self._stream_answer(request, self._limit(timeout_s))

    def batch(
        self, requests: Iterable[tuple[str, Request]], *, in_flight: int = 128, timeout_s: float | None = None
    ) -> Generator[tuple[str, Result], None, None]:
        """The same as GeneratorClient's. `requests` is walked by a thread of gRPC's, not by the caller's."""
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        source = iter(requests)
        room = threading.Semaphore(in_flight)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        more = True
        while more:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            feed = _Feed(source, room, self._settings)
            call = self._stub.BatchGenerate(feed, timeout=left, metadata=self._metadata)
            try:
                with translated():
                    for response in call:
                        feed.pending.discard(response.id)
                        yield response.id, result_of(response)
                        room.release()
                if feed.pending:
                    raise unanswered(feed.pending)
                more = feed.ended()
            finally:
                call.cancel()
                feed.close()

    def models(self, *, timeout_s: float | None = None) -> list[generator_pb2.Model]:
        """Bases, adapters and aliases that are served. `timeout_s` is for each page of them."""
        models: list[generator_pb2.Model] = []
        request = generator_pb2.ListModelsRequest()
        while True:
            with translated():
                page = self._stub.ListModels(request, timeout=self._limit(timeout_s), metadata=self._metadata)
            models.extend(page.models)
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    def _limit(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _stream_generate(self, request: generator_pb2.StreamGenerateRequest, timeout_s: float) -> Generator[TextPart, None, None]:
        call = self._stub.StreamGenerate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with translated():
                for response in call:
                    if (part := text_part(response)) is not None:
                        yield part
        finally:
            call.cancel()

    def _stream_answer(self, request: generator_pb2.StreamAnswerRequest, timeout_s: float) -> Generator[AnswerPart, None, None]:
        call = self._stub.StreamAnswer(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with translated():
                for response in call:
                    if (part := answer_part(response)) is not None:
                        yield part
        finally:
            call.cancel()


class _Feed:
    """The requests of one stream: until there are none, or it has lasted long enough. Walked by a thread of gRPC's."""

    def __init__(self, source: Iterator[tuple[str, Request]], room: threading.Semaphore, settings: ChannelSettings) -> None:
        self._source, self._room, self._max_bytes = source, room, settings.max_message_bytes
        self._until = time.monotonic() + settings.batch_stream_s
        self._begun = self._exhausted = self._closed = False
        self._error: Exception | None = None
        self.pending: set[str] = set()
        """Ids that were sent and have no result yet."""

    def __iter__(self) -> Iterator[generator_pb2.BatchGenerateRequest]:
        return self

    def __next__(self) -> generator_pb2.BatchGenerateRequest:
        if self._begun and time.monotonic() >= self._until:
            raise StopIteration
        self._room.acquire()
        if self._closed:
            raise StopIteration
        self._begun = True
        try:
            request = batch_request(next(self._source), self._max_bytes)
        except StopIteration:
            self._exhausted = True
        except Exception as error:  # gRPC would log it and cancel the call
            self._error = error
        else:
            self.pending.add(request.id)
            return request
        self._room.release()
        raise StopIteration

    def ended(self) -> bool:
        """Whether there may be more for another stream. Raises what the requests raised."""
        if self._error is not None:
            raise self._error
        return not self._exhausted

    def close(self) -> None:
        """Lets the thread go that may wait for room."""
        self._closed = True
        self._room.release()
