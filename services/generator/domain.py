"""Prompts, decoding, answers, models, and the ports to what lies outside. Knows no model library, no wire and no database."""

from __future__ import annotations

import enum
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from services.common.errors import InvalidArgument, TunetrialError

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
    """A prompt and the tokens that the model will see; none and not `counted` where only the engine's provider can tell them."""

    prompt: Prompt
    tokens: tuple[int, ...]
    counted: bool = True


class ConstraintKind(enum.Enum):
    """How a text can be constrained."""

    JSON_SCHEMA = "a JSON schema"
    REGEX = "a regular expression"
    CHOICE = "one of some texts"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a text must be: a JSON schema, a regular expression (one value), or one of several texts."""

    kind: ConstraintKind
    values: tuple[str, ...]


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
    constraint: Constraint | None = None

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
            (_is_wrong(self.constraint), "constraint", "a JSON schema, a regular expression, or texts that are different and not empty"),
            (
                self.top_log_probabilities is not None and not 0 <= self.top_log_probabilities <= MAX_TOP_LOG_PROBABILITIES,
                "top_log_probabilities",
                f"0 to {MAX_TOP_LOG_PROBABILITIES}",
            ),
        )
        for is_wrong, name, expected in wrong:
            if is_wrong:
                raise InvalidArgument("DECODING_INVALID", "{field} must be {expected}", field=f"decoding.{name}", expected=expected)


def _is_wrong(constraint: Constraint | None) -> bool:
    if constraint is None:
        return False
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        try:
            return not isinstance(json.loads(constraint.values[0]), dict)
        except ValueError:
            return True
    return not constraint.values or "" in constraint.values or len(set(constraint.values)) < len(constraint.values)


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
    """A generated token; natural logarithms of the model's own distribution, before temperature and truncation. `id` -1: unknown."""

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
    snapshot: str = ""
    """Name under which a provider answered; empty for engines of one's own."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine is asked to do. `max_tokens` fits the context already, where it is known."""

    encoded: Encoded
    decoding: Decoding
    max_tokens: int
    adapter: str | None = None
    """Name of a loaded adapter; None for the base."""
    among: frozenset[str] = frozenset()
    """Identities of the replicas that may answer: those on which the adapter is proven. Empty: any, for the base."""
    stream: bool = False
    """Whether pieces of text are wanted before the end."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt and an answer on which an adapter is proven; log-probabilities in nats of the answer's tokens, where a manifest has them."""

    prompt: Prompt
    completion: str
    base_log_probabilities: tuple[float, ...] | None = None
    adapter_log_probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A base model as served."""

    name: str
    uri: str
    weights_sha256: str
    """Empty when unknown."""
    context_tokens: int
    """0 when unknown."""
    load_time: datetime
    engine: str
    """transformers, vllm, tgi or openai."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A process that answers for an engine, and the adapters that it says it has. Another process has another `identity`."""

    identity: str
    adapters: frozenset[str]


@dataclass(frozen=True, slots=True)
class Speaker:
    """The replica that is asked now: what follows is its answer. Those that were asked before have said nothing."""

    identity: str


class Engine(Protocol):
    """Port to what runs one base model and its adapters, in one process or several that must all serve the same."""

    @property
    def base(self) -> Base:
        """The base model. Raises Unavailable ENGINE_UNAVAILABLE until it is ready."""

    @property
    def capacity(self) -> int:
        """Requests that it takes at once; more wait outside."""

    def epoch(self, replica: str) -> int | None:
        """Grows whenever the replica of this identity may have become another process all the same: adapters on it are looked at again.
        None when it is there no more, where an engine can tell.
        """

    async def prepare(self) -> None:
        """Loads or finds the base model. Raises ValueError when it can never be served."""

    async def replicas(self) -> tuple[Replica, ...]:
        """What can be reached now; never empty. Raises Unavailable ENGINE_UNAVAILABLE when nothing can."""

    async def encode(self, prompt: Prompt) -> Encoded:
        """Tokens of a prompt. Raises InvalidArgument CONVERSATION_INVALID, FailedPrecondition CHAT_TEMPLATE_MISSING."""

    def generate(self, work: Work) -> AsyncGenerator[Speaker | str | Generation, None]:
        """Pieces of text if `work.stream`, then the whole; closing it frees its place at once. With several replicas, first who is asked.

        Raises Unavailable ENGINE_UNAVAILABLE, ResourceExhausted ENGINE_BUSY, FailedPrecondition DECODING_UNSUPPORTED for settings that it
        cannot keep, InvalidArgument PROMPT_TOO_LONG.
        """

    async def load_adapter(self, adapter: str, folder: Path, among: frozenset[str] = frozenset()) -> None:
        """Puts an adapter into every replica, instead of one of the same name, or into none; with `among` into those of these identities.

        Raises InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH, ADAPTER_REFUSED, ADAPTERS_UNSUPPORTED,
        ENGINE_RESTART_NEEDED, Unavailable.
        """

    async def unload_adapter(self, adapter: str) -> None:
        """Takes an adapter out of every replica; nothing happens when it is not in."""

    async def score(self, rows: Sequence[tuple[str | None, Canary]], replica: str) -> tuple[tuple[float, ...], ...]:
        """Log-probabilities of the completions' tokens, all rows in one batch, by the replica of this identity; a row is an adapter
        (None: the base) and a canary. Raises FailedPrecondition ENGINE_CANNOT_SCORE, Unavailable when the replica is another one by now.
        """

    async def close(self) -> None:
        """Ends all work."""


@runtime_checkable
class HostedModels(Protocol):
    """What an engine offers beside `Engine` whose provider keeps fine-tuned models of the base."""

    async def load_hosted(self, adapter: str, model: str) -> None:
        """From now on requests for `adapter` are asked of the provider's `model`. Raises FailedPrecondition ADAPTER_BASE_MISMATCH."""


class EngineRollout(Protocol):
    """Port to what starts an engine anew, where the engine takes adapters only at its start."""

    async def add(self, base: str, listed: Sequence[str], adapter: str, path: str) -> None:
        """Returns when every replica of `base` runs with this adapter besides those `listed`, and no other replica answers any more.

        `path` is the adapter's as the engine sees it. Raises FailedPrecondition ENGINE_RESTART_NEEDED, which says what to do, where nothing
        can be started from here, ENGINE_ROLLOUT_FAILED where it did not start, and runs as before; Unavailable.
        """

    async def remove(self, adapter: str) -> None:
        """Takes back what `add` did. Errors: those of `add`."""

    async def close(self) -> None:
        """Closes the connections."""


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
    replica_count: int = 1
    answered_as: str = ""
    """Name under which a provider answered for the adapter, which is all that is known of one that it keeps; nothing was measured then."""


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
    engine: str = ""
    rejection: TunetrialError | None = None


@dataclass(frozen=True, slots=True)
class AliasChange:
    """What an alias stood for from a time on."""

    target: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Placed:
    """An adapter that shall be served, also after a restart."""

    name: str
    uri: str
    base: str
    weights_sha256: str
    config_sha256: str


class ModelStore(Protocol):
    """Port to where adapters that shall be served, aliases and their history are kept."""

    async def adapters(self) -> Sequence[Placed]:
        """All adapters that were loaded and not unloaded, in the order of loading."""

    async def place(self, adapter: Placed) -> None:
        """Keeps an adapter; one of the same name is replaced."""

    async def displace(self, name: str) -> None:
        """Forgets an adapter."""

    async def close(self) -> None:
        """Disconnects."""

    async def open(self) -> None:
        """Connects; called once, before all others."""

    async def current(self) -> Mapping[str, AliasChange]:
        """Every alias as it now is."""

    async def history(self, alias: str) -> tuple[AliasChange, ...]:
        """What an alias has stood for, newest first; empty for one that never was."""

    async def set(self, alias: str, target: str, expected: str | None) -> tuple[AliasChange, ...]:
        """Sets an alias; its history, newest first. Raises Aborted ALIAS_CHANGED when `expected` ("" for no alias yet) does not hold."""
