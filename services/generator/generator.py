"""What the service does: text for a prompt, an answer for a question. Knows models by the catalog and passages by their port."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from services.common.errors import InvalidArgument, Unavailable
from services.generator import prompting
from services.generator.catalog import Catalog, Route
from services.generator.domain import (
    DEFAULT_MAX_TOKENS,
    Decoding,
    Encoded,
    Generation,
    Hit,
    Passage,
    Prompt,
    Retrieval,
    Retriever,
    Speaker,
    Turn,
    Work,
)
from services.generator.prompting import Template

MAX_QUESTION_CHARACTERS = 100_000


class Overflow(enum.Enum):
    """What to do when a prompt is longer than the model takes."""

    ERROR = "refuse it"
    CUT_PASSAGES = "leave out passages from the last on"


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt to a model."""

    model: str
    prompt: Prompt
    decoding: Decoding


@dataclass(frozen=True, slots=True)
class Question:
    """A question over passages: given, to be found, or none."""

    model: str
    text: str
    source: tuple[Passage, ...] | Retrieval | None
    template: Template
    decoding: Decoding
    overflow: Overflow


@dataclass(frozen=True, slots=True)
class Manner:
    """Who calls and how they wait: for pieces or the whole, with patience or not, and for how long (None: without end)."""

    caller: str
    """Callers take turns, by these names."""
    stream: bool = False
    patient: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """What came of a prompt."""

    generation: Generation
    model: str
    prompt_hash: str


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage on which an answer leans; `marked` when the model named it, else it holds the answer word for word."""

    passage_id: str
    marked: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """The passages in the prompt, in order."""

    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question; `text` is without outer space."""

    text: str
    abstained: bool
    citations: tuple[Citation, ...]
    shown: tuple[Hit, ...]
    cut: tuple[str, ...]
    generation: Generation
    model: str
    prompt_hash: str


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A prompt that fits, and the hits that it shows."""

    prompt: tuple[Turn, ...]
    encoded: Encoded
    hits: tuple[Hit, ...]


class Generator:
    """Generates and answers. Errors: those that the contract lists for every generating rpc."""

    def __init__(self, catalog: Catalog, retriever: Retriever | None, max_tokens: int) -> None:
        self._catalog, self._retriever, self._max_tokens = catalog, retriever, max_tokens

    async def generate(self, call: Call, manner: Manner) -> AsyncGenerator[str | Text, None]:
        """Pieces of text if wanted, then the whole."""
        call.decoding.check(self._max_tokens)
        _check_prompt(call.prompt)
        with self._catalog.use(call.model) as route:
            encoded = await route.engine.encode(call.prompt)
            async with contextlib.aclosing(_run(route, encoded, call.decoding, manner)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield piece
                    else:
                        yield Text(piece, route.name, prompting.prompt_hash(call.prompt))

    async def answer(self, question: Question, manner: Manner) -> AsyncGenerator[Shown | str | Answer, None]:
        """The passages shown, pieces of text if wanted, then the whole."""
        question.decoding.check(self._max_tokens)
        if not question.text.strip() or len(question.text) > MAX_QUESTION_CHARACTERS:
            raise InvalidArgument(
                "QUESTION_INVALID", "a question has 1 to {most} characters and is not blank", most=MAX_QUESTION_CHARACTERS, field="question"
            )
        with self._catalog.use(question.model) as route:
            hits = await self._find(question, manner)
            fitted = await _fit(route, question, hits)
            yield Shown(fitted.hits)
            trim = _Trim()
            async with contextlib.aclosing(_run(route, fitted.encoded, question.decoding, manner)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Generation):
                        yield _answer(question, route, fitted, hits, piece)
                    elif text := trim.push(piece):
                        yield text

    async def _find(self, question: Question, manner: Manner) -> tuple[Hit, ...]:
        if question.source is None:
            return ()
        if not isinstance(question.source, Retrieval):
            return tuple(Hit(passage) for passage in question.source)
        if self._retriever is None:
            raise Unavailable("RETRIEVER_UNAVAILABLE", "this generator has no retriever: set TUNETRIAL_RETRIEVER_ADDRESS or send passages")
        return await self._retriever.search(question.source, question.text, manner.timeout_s)


async def _run(route: Route, encoded: Encoded, decoding: Decoding, manner: Manner) -> AsyncGenerator[str | Generation, None]:
    max_tokens = decoding.max_tokens or DEFAULT_MAX_TOKENS
    if encoded.counted:
        length, context = len(encoded.tokens), route.context_tokens
        if length == 0:
            raise InvalidArgument("PROMPT_EMPTY", "the prompt has no tokens", field="prompt")
        if length > context - 1:
            raise _too_long(length, context)
        max_tokens = min(max_tokens, context - length)
    async with route.admission.enter(manner.caller, patient=manner.patient):
        among = await route.assured(frozenset())
        work = Work(encoded, decoding, max_tokens, route.adapter, among, manner.stream)
        async with contextlib.aclosing(route.engine.generate(work)) as parts:
            async for part in parts:
                if isinstance(part, Speaker):
                    among = frozenset((part.identity,))
                    continue
                # Asked again before anything is handed on: the engine may have become another process since.
                await route.assured(among)
                yield part


async def _fit(route: Route, question: Question, hits: Sequence[Hit]) -> _Fitted:
    """The prompt with as many passages, from the first on, as leave room for the answer.

    Room is kept for `max_tokens` where the caller set it, else for the default or a quarter of the context, whichever is less; in no case
    for more than half of the context.
    """
    context = route.context_tokens
    wanted = question.decoding.max_tokens
    reserve = min(wanted, context // 2) if wanted else min(DEFAULT_MAX_TOKENS, context // 4)

    async def with_first(count: int) -> _Fitted:
        # In a thread: a template is the caller's program, and may take its time.
        prompt = await asyncio.to_thread(question.template.render, question.text, [hit.passage for hit in hits[:count]])
        return _Fitted(prompt, await route.engine.encode(prompt), tuple(hits[:count]))

    def fit_in(tried: _Fitted) -> bool:
        # Where only the provider knows the tokens, the provider says when it is too much.
        return not tried.encoded.counted or len(tried.encoded.tokens) + reserve <= context

    whole = await with_first(len(hits))
    if question.overflow is Overflow.ERROR or fit_in(whole):
        return whole
    # A prompt grows with every passage: halve the range between one that fits and one that does not.
    fits, fails, best = 0, len(hits), await with_first(0)
    if not fit_in(best):
        # Without passages there is nothing left to cut; it may still fit with a shorter answer.
        return best
    while fails - fits > 1:
        middle = (fits + fails) // 2
        tried = await with_first(middle)
        if fit_in(tried):
            fits, best = middle, tried
        else:
            fails = middle
    return best


def _answer(question: Question, route: Route, fitted: _Fitted, hits: Sequence[Hit], generation: Generation) -> Answer:
    text = generation.text.strip()
    passages = [hit.passage for hit in fitted.hits]
    abstained = question.template.abstains(text)
    citations = [Citation(passage, marked=True) for passage in prompting.marked(text, passages)]
    if not citations and not abstained:
        citations = [Citation(passage, marked=False) for passage in prompting.verbatim(text, passages)]
    cut = tuple(hit.passage.id for hit in hits[len(fitted.hits) :])
    generation = replace(generation, text=text)
    return Answer(text, abstained, tuple(citations), fitted.hits, cut, generation, route.name, prompting.prompt_hash(fitted.prompt))


class _Trim:
    """Pieces without the outer space of their whole: space is held back until more text comes."""

    def __init__(self) -> None:
        self._space = ""
        self._begun = False

    def push(self, piece: str) -> str:
        whole = self._space + piece if self._begun else piece.lstrip()
        text = whole.rstrip()
        self._space = whole[len(text) :]
        self._begun = self._begun or bool(text)
        return text


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, str):
        return
    if not prompt or prompt[-1].role != "user":
        raise InvalidArgument(
            "CONVERSATION_INVALID", "a conversation has turns and ends with the user's", field="prompt.conversation.messages"
        )


def _too_long(length: int, context: int) -> InvalidArgument:
    return InvalidArgument(
        "PROMPT_TOO_LONG",
        "the prompt has {prompt_tokens} tokens, the model takes {limit_tokens} so that an answer has room: shorten it or cut passages",
        prompt_tokens=length,
        limit_tokens=context - 1,
        context_tokens=context,
        field="prompt",
    )
