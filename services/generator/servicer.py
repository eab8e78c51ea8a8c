"""Wire to domain and back. The only module of this service that speaks its contract; holds no rule of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from tunetrial import prompts
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc
from tunetrial.retriever.v1 import retriever_pb2

from services.common.errors import AlreadyExists, Internal, InvalidArgument, TunetrialError
from services.common.server import to_failure
from services.generator.catalog import Catalog
from services.generator.domain import (
    AliasChange,
    Decoding,
    Finish,
    Generation,
    Hit,
    Model,
    Passage,
    Prompt,
    Proof,
    Retrieval,
    State,
    Token,
    Turn,
)
from services.generator.generator import Answer, Call, Generator, Manner, Overflow, Question, Shown, Text
from services.generator.prompting import Example, Template

_log = structlog.get_logger()

_ROLES: dict[int, str] = {common_pb2.ROLE_SYSTEM: "system", common_pb2.ROLE_USER: "user", common_pb2.ROLE_ASSISTANT: "assistant"}
_FINISHES = {
    Finish.END: generator_pb2.FINISH_REASON_END,
    Finish.STOP: generator_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: generator_pb2.FINISH_REASON_LENGTH,
}
_STATES = {
    State.LOADED: generator_pb2.ADAPTER_STATE_LOADED,
    State.VERIFIED: generator_pb2.ADAPTER_STATE_VERIFIED,
    State.REJECTED: generator_pb2.ADAPTER_STATE_REJECTED,
}
_OVERFLOWS: dict[int, Overflow] = {
    generator_pb2.OVERFLOW_UNSPECIFIED: Overflow.ERROR,
    generator_pb2.OVERFLOW_ERROR: Overflow.ERROR,
    generator_pb2.OVERFLOW_CUT_PASSAGES: Overflow.CUT_PASSAGES,
}
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
        return await self._generate(request, Manner(timeout_s=context.time_remaining()))

    async def StreamGenerate(
        self,
        request: generator_pb2.StreamGenerateRequest,
        context: grpc.aio.ServicerContext[generator_pb2.StreamGenerateRequest, generator_pb2.StreamGenerateResponse],
    ) -> AsyncIterator[generator_pb2.StreamGenerateResponse]:
        """The same, token by token."""
        manner = Manner(stream=True, timeout_s=context.time_remaining())
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
                responses.put_nowait(await self._one(request, Manner(patient=True, timeout_s=context.time_remaining())))
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
        return await self._answer(request, Manner(timeout_s=context.time_remaining()))

    async def StreamAnswer(
        self,
        request: generator_pb2.StreamAnswerRequest,
        context: grpc.aio.ServicerContext[generator_pb2.StreamAnswerRequest, generator_pb2.StreamAnswerResponse],
    ) -> AsyncIterator[generator_pb2.StreamAnswerResponse]:
        """The same, token by token."""
        manner = Manner(stream=True, timeout_s=context.time_remaining())
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


def to_call(request: generator_pb2.GenerateRequest) -> Call:
    """A prompt to a model. Raises InvalidArgument for a prompt that is missing or has a turn without a role."""
    return Call(request.model, _prompt(request.prompt), _decoding(request.decoding))


def to_question(request: generator_pb2.AnswerRequest, default: Template) -> Question:
    """A question over passages. Raises InvalidArgument for an overflow rule that is not known."""
    overflow = _OVERFLOWS.get(request.overflow)
    if overflow is None:
        raise InvalidArgument("OVERFLOW_INVALID", "overflow {overflow} is not known", overflow=request.overflow, field="overflow")
    template = to_template(request.template) if request.HasField("template") else default
    source: tuple[Passage, ...] | Retrieval | None = None
    if request.WhichOneof("source") == "passages":
        source = tuple(_passage(passage) for passage in request.passages.passages)
    elif request.WhichOneof("source") == "retrieval":
        source = Retrieval(request.retrieval.index, request.retrieval.settings.SerializeToString())
    return Question(request.model, request.question, source, template, _decoding(request.decoding), overflow)


def to_template(template: common_pb2.PromptTemplate) -> Template:
    """A prompt template."""
    examples = tuple(
        Example(example.question, tuple(_passage(passage) for passage in example.passages), example.answer) for example in template.examples
    )
    system = template.system if template.HasField("system") else None
    return Template(template.name, template.user, system, examples, tuple(template.abstentions))


def from_text(text: Text) -> generator_pb2.GenerateResponse:
    """Text, and how it came about."""
    made = text.generation
    return generator_pb2.GenerateResponse(
        text=made.text,
        finish_reason=_FINISHES[made.finish],
        tokens=[_token(token) for token in made.tokens],
        usage=_usage(made),
        model=text.model,
        prompt_hash=text.prompt_hash,
        seed=made.seed,
    )


def from_answer(answer: Answer) -> generator_pb2.AnswerResponse:
    """An answer with its passages."""
    made = answer.generation
    kinds = {True: generator_pb2.CITATION_KIND_MARKED, False: generator_pb2.CITATION_KIND_VERBATIM}
    return generator_pb2.AnswerResponse(
        text=answer.text,
        abstained=answer.abstained,
        citations=[generator_pb2.Citation(passage_id=citation.passage_id, kind=kinds[citation.marked]) for citation in answer.citations],
        shown=[from_hit(hit) for hit in answer.shown],
        cut_passage_ids=answer.cut,
        finish_reason=_FINISHES[made.finish],
        usage=_usage(made),
        model=answer.model,
        prompt_hash=answer.prompt_hash,
        tokens=[_token(token) for token in made.tokens],
        seed=made.seed,
    )


def from_hit(hit: Hit) -> retriever_pb2.Hit:
    """A passage that is shown."""
    shown = hit.passage
    passage = common_pb2.Passage(
        id=shown.id, text=shown.text, document=shown.document, title=shown.title, heading=shown.heading, metadata=shown.metadata
    )
    return retriever_pb2.Hit(
        passage=passage,
        rank=hit.rank or 0,
        score=hit.score or 0.0,
        lexical_rank=hit.lexical_rank,
        lexical_score=hit.lexical_score,
        dense_rank=hit.dense_rank,
        dense_score=hit.dense_score,
        rerank_score=hit.rerank_score,
    )


def from_model(model: Model) -> generator_pb2.Model:
    """A base, an adapter or an alias."""
    kind = generator_pb2.MODEL_KIND_BASE
    if model.target:
        kind = generator_pb2.MODEL_KIND_ALIAS
    elif model.state is not None:
        kind = generator_pb2.MODEL_KIND_ADAPTER
    return generator_pb2.Model(
        name=model.name,
        kind=kind,
        base=model.base,
        uri=model.uri,
        weights_sha256=model.weights_sha256,
        state=None if model.state is None else _STATES[model.state],
        proof=None if model.proof is None else _proof(model.proof),
        target=model.target,
        context_tokens=model.context_tokens,
        load_time=_timestamp(model.load_time),
    )


def from_alias_change(change: AliasChange) -> generator_pb2.AliasChange:
    """A change of an alias."""
    return generator_pb2.AliasChange(target=change.target, time=_timestamp(change.time))


def _prompt(prompt: generator_pb2.Prompt) -> Prompt:
    if prompt.WhichOneof("input") == "text":
        return prompt.text
    if prompt.WhichOneof("input") != "conversation":
        raise InvalidArgument("PROMPT_EMPTY", "set `conversation` or `text`", field="prompt.input")
    turns = []
    for message in prompt.conversation.messages:
        if message.role not in _ROLES:
            raise InvalidArgument("CONVERSATION_INVALID", "every turn needs a role", field="prompt.conversation.messages.role")
        turns.append(Turn(_ROLES[message.role], message.content))
    return tuple(turns)


def _decoding(decoding: generator_pb2.Decoding) -> Decoding:
    return Decoding(
        decoding.max_tokens if decoding.HasField("max_tokens") else None,
        decoding.temperature if decoding.HasField("temperature") else None,
        decoding.top_p if decoding.HasField("top_p") else None,
        decoding.top_k if decoding.HasField("top_k") else None,
        decoding.seed if decoding.HasField("seed") else None,
        tuple(decoding.stop),
        decoding.top_log_probabilities if decoding.HasField("top_log_probabilities") else None,
    )


def _passage(passage: common_pb2.Passage) -> Passage:
    return Passage(passage.id, passage.text, passage.document, passage.title, passage.heading, dict(passage.metadata))


def _token(token: Token) -> generator_pb2.Token:
    top = [generator_pb2.TopToken(id=rival.id, text=rival.text, log_probability=rival.log_probability) for rival in token.top]
    return generator_pb2.Token(id=token.id, text=token.text, log_probability=token.log_probability, top=top)


def _usage(made: Generation) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=made.prompt_tokens, completion_tokens=made.completion_tokens, latency_ms=made.latency_ms, cost_usd=made.cost_usd
    )


def _proof(proof: Proof) -> generator_pb2.AdapterProof:
    return generator_pb2.AdapterProof(
        canary_count=proof.canary_count,
        difference_from_base=proof.difference_from_base,
        base_noise=proof.base_noise,
        difference_from_manifest=proof.difference_from_manifest,
        tolerance=proof.tolerance,
        time=_timestamp(proof.time),
    )


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
