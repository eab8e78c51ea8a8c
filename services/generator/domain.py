"""Prompts, decoding, answers, models, and the ports to what lies outside. Knows no model library, no wire and no database."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from services.common.errors import InvalidArgument

DEFAULT_MAX_TOKENS = 256
MAX_STOPS = 8
MAX_TOP_LOG_PROBABILITIES = 20


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


Prompt = tuple[Turn, ...] | str
"""A conversation, rendered by the model's own chat template, or bare text."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and the tokens that the model will see."""

    prompt: Prompt
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to sample; None means the contract's default. All unset: greedy, up to 256 tokens."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_log_probabilities: int | None = None

    @property
    def greedy(self) -> bool:
        """True when the most probable token is always taken."""
        return not self.temperature

    def check(self, limit: int) -> None:
        """Raises InvalidArgument DECODING_INVALID naming the field that is out of range. `limit`: most tokens that may be asked for."""
        wrong = (
            (self.max_tokens is not None and not 1 <= self.max_tokens <= limit, "max_tokens", f"1 to {limit}"),
            (self.temperature is not None and not 0 <= self.temperature <= 2, "temperature", "0 to 2"),
            (self.top_p is not None and not 0 < self.top_p <= 1, "top_p", "above 0 to 1"),
            (self.top_k is not None and self.top_k < 1, "top_k", "at least 1"),
            (len(self.stop) > MAX_STOPS or "" in self.stop, "stop", f"at most {MAX_STOPS} texts, none of them empty"),
            (
                self.top_log_probabilities is not None and not 0 <= self.top_log_probabilities <= MAX_TOP_LOG_PROBABILITIES,
                "top_log_probabilities",
                f"0 to {MAX_TOP_LOG_PROBABILITIES}",
            ),
        )
        for is_wrong, name, expected in wrong:
            if is_wrong:
                raise InvalidArgument("DECODING_INVALID", "{field} must be {expected}", field=f"decoding.{name}", expected=expected)


class Finish(enum.Enum):
    """Why generation ended."""

    END = "the model ended its turn"
    STOP = "a stop text appeared"
    LENGTH = "max_tokens or the context was reached"


@dataclass(frozen=True, slots=True)
class TopToken:
    """A token that might have been."""

    id: int
    text: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token; natural logarithms of the model's own distribution, before temperature and truncation."""

    id: int
    text: str
    log_probability: float
    top: tuple[TopToken, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """Text, and how it came about."""

    text: str
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    """Time in the engine, queueing included."""
    cost_usd: float | None
    """None when the engine has no price table, 0 when it is known to be free."""
    tokens: tuple[Token, ...] = ()
    seed: int | None = None
    """Seed used; None for greedy."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine is asked to do. `max_tokens` fits the context already."""

    encoded: Encoded
    decoding: Decoding
    max_tokens: int
    adapter: str | None = None
    """Name of a loaded adapter; None for the base."""
    stream: bool = False
    """Whether pieces of text are wanted before the end."""
    patient: bool = False
    """Wait for room in the queue instead of being refused with QUEUE_FULL."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt and an answer on which an adapter is proven; log-probabilities in nats of the answer's tokens, where a manifest has them."""

    prompt: Prompt
    completion: str
    adapter_log_probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A base model as served."""

    name: str
    uri: str
    weights_sha256: str
    context_tokens: int
    load_time: datetime


class Engine(Protocol):
    """Port to what runs one base model and its adapters."""

    @property
    def base(self) -> Base:
        """The base model. Raises Unavailable ENGINE_UNAVAILABLE until it is ready."""

    async def prepare(self) -> None:
        """Loads the base model; raises when it cannot be served."""

    async def encode(self, prompt: Prompt) -> Encoded:
        """Tokens of a prompt. Raises InvalidArgument CONVERSATION_INVALID, FailedPrecondition CHAT_TEMPLATE_MISSING."""

    def generate(self, work: Work) -> AsyncGenerator[str | Generation, None]:
        """Pieces of text if `work.stream`, then the whole; closing it frees its place at once. Raises ResourceExhausted QUEUE_FULL."""

    async def load_adapter(self, adapter: str, folder: Path) -> None:
        """Puts an adapter in, or nothing: InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH."""

    async def unload_adapter(self, adapter: str) -> None:
        """Takes an adapter out; nothing happens when it is not in."""

    async def score(self, rows: Sequence[tuple[str | None, Canary]]) -> tuple[tuple[float, ...], ...]:
        """Log-probabilities of the completions' tokens, all rows in one batch; a row is an adapter (None: the base) and a canary."""

    async def close(self) -> None:
        """Ends all work."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrievable piece of text."""

    id: str
    text: str
    document: str = ""
    title: str = ""
    heading: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that is shown; rank and scores are None where no retriever found it or a leg did not return it."""

    passage: Passage
    rank: int | None = None
    score: float | None = None
    lexical_rank: int | None = None
    lexical_score: float | None = None
    dense_rank: int | None = None
    dense_score: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A search whose hits are shown. `settings` are the retriever's own, in its wire form, and passed on unread."""

    index: str
    settings: bytes


class Retriever(Protocol):
    """Port to the retriever."""

    async def search(self, retrieval: Retrieval, query: str, timeout_s: float | None) -> tuple[Hit, ...]:
        """Ranked passages. Raises the retriever's own errors, and Unavailable RETRIEVER_UNAVAILABLE when it cannot be reached."""


class State(enum.Enum):
    """Where an adapter stands; only VERIFIED answers."""

    LOADED = "in the engine, not proven yet"
    VERIFIED = "proven"
    REJECTED = "the proof failed"


@dataclass(frozen=True, slots=True)
class Proof:
    """Evidence that an adapter is applied; differences are the largest over all canary tokens, in nats."""

    canary_count: int
    difference_from_base: float
    base_noise: float
    difference_from_manifest: float | None
    """None when the manifest holds no log-probabilities."""
    tolerance: float
    time: datetime


@dataclass(frozen=True, slots=True)
class Model:
    """A base, an adapter (`state` is set) or an alias (`target` is set)."""

    name: str
    base: str
    uri: str
    weights_sha256: str
    context_tokens: int
    load_time: datetime
    state: State | None = None
    proof: Proof | None = None
    target: str = ""


@dataclass(frozen=True, slots=True)
class AliasChange:
    """What an alias stood for from a time on."""

    target: str
    time: datetime


class AliasStore(Protocol):
    """Port to where aliases and their history are kept."""

    async def current(self) -> Mapping[str, AliasChange]:
        """Every alias as it now is."""

    async def set(self, alias: str, target: str, expected: str | None) -> tuple[AliasChange, ...]:
        """Sets an alias; its history, newest first. Raises Aborted ALIAS_CHANGED when `expected` ("" for no alias yet) does not hold."""
