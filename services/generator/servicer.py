"""The generator's rpcs; with `messages` the only module of this service that speaks its contract. Holds no rule of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import grpc
import structlog
from tunetrial import prompts
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc

from services.common.errors import AlreadyExists, Internal, InvalidArgument, TunetrialError
from services.common.server import to_failure
from services.generator.catalog import Catalog
from services.generator.generator import Answer, Generator, Manner, Shown, Text
from services.generator.messages import from_alias_change, from_answer, from_hit, from_model, from_text, to_call, to_question, to_template

_log = structlog.get_logger()

_Whole = TypeVar("_Whole", Text, Answer)
_BatchContext = grpc.aio.ServicerContext[generator_pb2.BatchGenerateRequest, generator_pb2.BatchGenerateResponse]


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """The generator's rpcs."""

    def __init__(self, generator: Generator, catalog: Catalog, batch_in_flight: int) -> None:
        self._generator, self._catalog, self._batch_in_flight = generator, catalog, batch_in_flight
        self._default_template = to_template(prompts.load("plain/v1"))

    async def Generate(
        self,
        request: generator_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[generator_pb2.GenerateRequest, generator_pb2.GenerateResponse],
    ) -> generator_pb2.GenerateResponse:
        """Text for one prompt."""
        return await self._generate(request, _manner(context))

    async def StreamGenerate(
        self,
        request: generator_pb2.StreamGenerateRequest,
        context: grpc.aio.ServicerContext[generator_pb2.StreamGenerateRequest, generator_pb2.StreamGenerateResponse],
    ) -> AsyncIterator[generator_pb2.StreamGenerateResponse]:
        """The same, token by token."""
        manner = _manner(context, stream=True)
        async with contextlib.aclosing(self._generator.generate(to_call(request.generate), manner)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield generator_pb2.StreamGenerateResponse(text=piece)
                else:
                    yield generator_pb2.StreamGenerateResponse(done=from_text(piece))

    async def BatchGenerate(
        self, requests: AsyncIterator[generator_pb2.BatchGenerateRequest], context: _BatchContext
    ) -> AsyncIterator[generator_pb2.BatchGenerateResponse]:
        """Many prompts; so many are in flight as the setting says, and the stream is not read further until answers are taken."""
        room = asyncio.Semaphore(self._batch_in_flight)
        responses: asyncio.Queue[generator_pb2.BatchGenerateResponse | None] = asyncio.Queue()
        tasks: dict[str, asyncio.Task[None]] = {}

        async def work(request: generator_pb2.BatchGenerateRequest) -> None:
            try:
                responses.put_nowait(await self._one(request, _manner(context, patient=True)))
            finally:
                del tasks[request.id]

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    if request.id in tasks:
                        error = AlreadyExists("ID_REUSED", "id {id} is in flight in this stream already", id=request.id, field="id")
                        responses.put_nowait(generator_pb2.BatchGenerateResponse(id=request.id, failure=to_failure(error)))
                        continue
                    tasks[request.id] = asyncio.create_task(work(request))
                await asyncio.gather(*tasks.values())
            finally:
                responses.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (response := await responses.get()) is not None:
                yield response
                room.release()
            await reader
        finally:
            for task in (reader, *tasks.values()):
                task.cancel()

    async def Answer(
        self,
        request: generator_pb2.AnswerRequest,
        context: grpc.aio.ServicerContext[generator_pb2.AnswerRequest, generator_pb2.AnswerResponse],
    ) -> generator_pb2.AnswerResponse:
        """Answers a question from passages."""
        return await self._answer(request, _manner(context))

    async def StreamAnswer(
        self,
        request: generator_pb2.StreamAnswerRequest,
        context: grpc.aio.ServicerContext[generator_pb2.StreamAnswerRequest, generator_pb2.StreamAnswerResponse],
    ) -> AsyncIterator[generator_pb2.StreamAnswerResponse]:
        """The same, token by token."""
        manner = _manner(context, stream=True)
        async with contextlib.aclosing(self._generator.answer(to_question(request.answer, self._default_template), manner)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Shown):
                    hits = [from_hit(hit) for hit in piece.hits]
                    yield generator_pb2.StreamAnswerResponse(shown=generator_pb2.HitList(hits=hits))
                elif isinstance(piece, str):
                    yield generator_pb2.StreamAnswerResponse(text=piece)
                else:
                    yield generator_pb2.StreamAnswerResponse(done=from_answer(piece))

    async def ListModels(
        self,
        request: generator_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[generator_pb2.ListModelsRequest, generator_pb2.ListModelsResponse],
    ) -> generator_pb2.ListModelsResponse:
        """Bases, adapters and aliases served."""
        size = request.page_size if request.HasField("page_size") else None
        models, token = self._catalog.page(size, request.page_token)
        return generator_pb2.ListModelsResponse(models=[from_model(model) for model in models], next_page_token=token)

    async def LoadAdapter(
        self,
        request: generator_pb2.LoadAdapterRequest,
        context: grpc.aio.ServicerContext[generator_pb2.LoadAdapterRequest, generator_pb2.LoadAdapterResponse],
    ) -> generator_pb2.LoadAdapterResponse:
        """Loads and proves an adapter."""
        return generator_pb2.LoadAdapterResponse(model=from_model(await self._catalog.load(request.name, request.uri, request.base)))

    async def UnloadAdapter(
        self,
        request: generator_pb2.UnloadAdapterRequest,
        context: grpc.aio.ServicerContext[generator_pb2.UnloadAdapterRequest, generator_pb2.UnloadAdapterResponse],
    ) -> generator_pb2.UnloadAdapterResponse:
        """Takes an adapter out."""
        await self._catalog.unload(request.name)
        return generator_pb2.UnloadAdapterResponse()

    async def VerifyAdapter(
        self,
        request: generator_pb2.VerifyAdapterRequest,
        context: grpc.aio.ServicerContext[generator_pb2.VerifyAdapterRequest, generator_pb2.VerifyAdapterResponse],
    ) -> generator_pb2.VerifyAdapterResponse:
        """Repeats the proof."""
        return generator_pb2.VerifyAdapterResponse(model=from_model(await self._catalog.verify(request.name)))

    async def SetAlias(
        self,
        request: generator_pb2.SetAliasRequest,
        context: grpc.aio.ServicerContext[generator_pb2.SetAliasRequest, generator_pb2.SetAliasResponse],
    ) -> generator_pb2.SetAliasResponse:
        """Points an alias at a model."""
        expected = request.expected_target if request.HasField("expected_target") else None
        model, history = await self._catalog.set_alias(request.alias, request.target, expected)
        changes = [from_alias_change(change) for change in history]
        return generator_pb2.SetAliasResponse(model=from_model(model), history=changes)

    async def RollbackAlias(
        self,
        request: generator_pb2.RollbackAliasRequest,
        context: grpc.aio.ServicerContext[generator_pb2.RollbackAliasRequest, generator_pb2.RollbackAliasResponse],
    ) -> generator_pb2.RollbackAliasResponse:
        """Points an alias back."""
        expected = request.expected_target if request.HasField("expected_target") else None
        model, history = await self._catalog.roll_back(request.alias, expected)
        changes = [from_alias_change(change) for change in history]
        return generator_pb2.RollbackAliasResponse(model=from_model(model), history=changes)

    async def _generate(self, request: generator_pb2.GenerateRequest, manner: Manner) -> generator_pb2.GenerateResponse:
        return from_text(await _whole(self._generator.generate(to_call(request), manner), Text))

    async def _answer(self, request: generator_pb2.AnswerRequest, manner: Manner) -> generator_pb2.AnswerResponse:
        return from_answer(await _whole(self._generator.answer(to_question(request, self._default_template), manner), Answer))

    async def _one(self, request: generator_pb2.BatchGenerateRequest, manner: Manner) -> generator_pb2.BatchGenerateResponse:
        response = generator_pb2.BatchGenerateResponse(id=request.id)
        try:
            kind = request.WhichOneof("call")
            if kind == "generate":
                response.generate.CopyFrom(await self._generate(request.generate, manner))
            elif kind == "answer":
                response.answer.CopyFrom(await self._answer(request.answer, manner))
            else:
                raise InvalidArgument("CALL_MISSING", "set `generate` or `answer`", field="call")
        except TunetrialError as error:
            response.failure.CopyFrom(to_failure(error))
        except Exception as error:
            _log.exception("a request of a batch failed unexpectedly", id=request.id)
            response.failure.CopyFrom(to_failure(Internal("INTERNAL", "failed unexpectedly: {kind}", kind=type(error).__name__)))
        return response


async def _whole(pieces: AsyncGenerator[Any, None], kind: type[_Whole]) -> _Whole:
    """The last piece of a generation."""
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, kind):
                return piece
    raise Internal("INTERNAL", "the generation ended without a result")


def _manner(context: grpc.aio.ServicerContext[Any, Any], *, stream: bool = False, patient: bool = False) -> Manner:
    token = next((str(value) for key, value in context.invocation_metadata() or () if key == "authorization"), None)
    # Who has a token is one caller, however many connections it has.
    caller = context.peer() if token is None else hashlib.sha256(token.encode()).hexdigest()
    return Manner(caller, stream=stream, patient=patient, timeout_s=context.time_remaining())
