"""Passages, indexes, searches and their rules. Knows neither how passages are stored nor how texts become vectors nor the wire."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Protocol

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound

INDEX_NAME = re.compile(r"[a-z0-9_-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrievable piece of text. `metadata` are pairs of key and value, by key."""

    id: str
    text: str
    document: str = ""
    title: str = ""
    heading: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PassageFailure:
    """Why a passage was refused."""

    id: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """What an index is made with, fixed at creation. `language` "" means neither stemming nor stop words."""

    encoder: str = ""
    bm25_k1: float = 1.2
    bm25_b: float = 0.75
    language: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bm25_k1) and self.bm25_k1 >= 0):
            raise _settings_error("bm25_k1", "a number of at least 0")
        if not 0 <= self.bm25_b <= 1:
            raise _settings_error("bm25_b", "between 0 and 1")


@dataclass(frozen=True, slots=True)
class Index:
    """An index as it now is. `vector_dimensions` is 0 until a passage is in; `seal_time` and `content_hash` are unset while open."""

    name: str
    settings: IndexSettings
    create_time: datetime
    passage_count: int = 0
    vector_dimensions: int = 0
    seal_time: datetime | None = None
    content_hash: str = ""

    @property
    def sealed(self) -> bool:
        """Immutable and searchable; otherwise open for ingest."""
        return self.seal_time is not None


class Mode(Enum):
    """How passages are ranked."""

    LEXICAL = "lexical"
    DENSE = "dense"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """A search without its query. Raises InvalidArgument SEARCH_SETTINGS_INVALID for what is out of range."""

    mode: Mode = Mode.HYBRID
    k: int = 5
    window: int | None = None
    """Passages taken from each leg before fusion; None means max(50, 5 k)."""
    fusion_k: int = 60
    lexical_weight: float = 1.0
    dense_weight: float = 1.0
    filters: tuple[tuple[str, str], ...] = ()
    rerank: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 1000:
            raise _search_error("k", "between 1 and 1000")
        if self.window is not None and not self.k <= self.window <= 10_000:
            raise _search_error("window", "between k and 10000")
        if self.fusion_k < 1:
            raise _search_error("fusion_k", "at least 1")
        weights = {"lexical_weight": self.lexical_weight, "dense_weight": self.dense_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise _search_error(name, "a number of at least 0")
        if self.mode is Mode.HYBRID and not any(weights.values()):
            raise _search_error("lexical_weight", "above 0 when dense_weight is 0, or nothing could be ranked")

    @property
    def depth(self) -> int:
        """Passages to take from each leg: the window in hybrid mode, k where only one leg is asked."""
        if self.mode is not Mode.HYBRID:
            return self.k
        return max(50, 5 * self.k) if self.window is None else self.window

    def candidates(self, count: int) -> SearchSettings:
        """The same search for `count` hits where it asks for fewer, so that they can be reordered; what stays first, stays first.

        Legs are read as deep as before. Only a hybrid search that names no window is read deeper, where `count` needs it; one that names
        a window gives no more hits than that.
        """
        if self.mode is not Mode.HYBRID:
            return replace(self, k=max(self.k, count), window=None)
        window = max(self.depth, count) if self.window is None else self.window
        return replace(self, k=min(max(self.k, count), window), window=window)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors as rows of float32 in the machine's byte order, so that they pass between libraries without a copy for each number."""

    dimensions: int
    data: bytes = field(repr=False)

    def __len__(self) -> int:
        return len(self.data) // (4 * self.dimensions) if self.dimensions else 0

    def take(self, rows: Sequence[int]) -> Vectors:
        """Only these rows, in this order."""
        size = 4 * self.dimensions
        return Vectors(self.dimensions, b"".join(self.data[row * size : (row + 1) * size] for row in rows))


@dataclass(frozen=True, slots=True)
class Query:
    """A checked query, with its vector unless the mode is lexical."""

    text: str
    vector: Vectors | None
    settings: SearchSettings


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage in a result; `rank` counts from 1. Rank and score of a leg are None when that leg did not return it.

    `rerank_score` is None unless a reranker saw the passage; then it is also the `score` that ranked it.
    """

    passage: Passage
    rank: int
    score: float
    lexical_rank: int | None = None
    lexical_score: float | None = None
    dense_rank: int | None = None
    dense_score: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, best first. `reranker` is the identity of the one that reordered it, "" for none."""

    hits: tuple[Hit, ...]
    reranker: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an ingest."""

    index: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did."""

    added_count: int
    skipped_count: int
    failures: tuple[PassageFailure, ...]


class Encoder(Protocol):
    """Port to one model that makes unit vectors of texts. Texts beyond the model's longest input are cut by it."""

    @property
    def fingerprint(self) -> str:
        """The same only where the same text gives the same vector: what the model was loaded from."""

    @property
    def max_tokens(self) -> int:
        """The model's longest input in its own tokens; 0 when it has no limit."""

    async def queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions. Raises ResourceExhausted ENCODER_QUEUE_FULL."""

    async def passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages."""


class Encoders(Protocol):
    """Port to encoders by name."""

    async def get(self, name: str) -> Encoder:
        """Loads it the first time. Raises FailedPrecondition ENCODER_UNAVAILABLE, InvalidArgument URI_NOT_ALLOWED."""


class Reranker(Protocol):
    """Port to a model that reads a query and a passage together. Pairs beyond its longest input are cut by it."""

    @property
    def identity(self) -> str:
        """Name and fingerprint of the model as `name@fingerprint`."""

    async def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """How well each text answers the query; larger is better, numbers of different models do not compare.

        Raises ResourceExhausted RERANKER_QUEUE_FULL, Unavailable RERANKER_LOADING.
        """


class Indexes(Protocol):
    """Port to stored indexes. Calls on a name without an index raise NotFound INDEX_NOT_FOUND; all may raise Unavailable."""

    async def ready(self) -> None:
        """Raises Unavailable INDEX_STORE_UNAVAILABLE while the store is away."""

    async def close(self) -> None:
        """Lets writes that have begun end, and the store go."""

    async def create(self, name: str, settings: IndexSettings) -> Index:
        """An open index; the one that is there when its settings are the same.

        Raises AlreadyExists INDEX_SETTINGS_DIFFER, InvalidArgument INDEX_SETTINGS_INVALID for what this store cannot do.
        """

    async def get(self, name: str) -> Index:
        """The index as it now is."""

    async def names(self) -> Sequence[str]:
        """Names of all indexes, sorted."""

    async def delete(self, name: str) -> None:
        """Drops it whole, also when it cannot be read any more."""

    async def present(self, name: str, ids: Sequence[str]) -> frozenset[str]:
        """Those of `ids` that are stored."""

    async def add(self, name: str, passages: Sequence[Passage], vectors: Vectors) -> IngestReport:
        """Stores the passages whose ids are not there yet; those that it returns as added outlive the process.

        A passage that the store itself refuses is a failure, and the rest goes in. Raises FailedPrecondition INDEX_SEALED or
        ENCODER_CHANGED, ResourceExhausted INDEX_FULL, DISK_FULL or INDEX_STORE_BUSY.
        """

    async def seal(self, name: str) -> Index:
        """Builds the search structures; nothing changes after it. Raises FailedPrecondition INDEX_EMPTY, ResourceExhausted DISK_FULL."""

    async def search(self, name: str, query: Query) -> tuple[Hit, ...]:
        """Ranked passages of a sealed index, legs filtered first and fused by `fusion.fuse`."""


class ContentHash:
    """sha256 over settings and passages in id order: one JSON line each, keys sorted. Equal for equal content in whatever store."""

    def __init__(self, settings: IndexSettings) -> None:
        self._sha256 = hashlib.sha256()
        self._line(asdict(settings))

    def add(self, passage: Passage) -> None:
        """The next passage by id."""
        self._line(asdict(passage))

    def hexdigest(self) -> str:
        """The hash of all that was added."""
        return self._sha256.hexdigest()

    def _line(self, values: dict[str, object]) -> None:
        self._sha256.update(json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n")


def check_passage(passage: Passage) -> PassageFailure | None:
    """Why a passage cannot be used; None when it can."""
    keys = [key for key, _ in passage.metadata]
    problems = (
        (not passage.id or len(passage.id.encode()) > 512, "PASSAGE_ID_INVALID", "an id has 1 to 512 bytes"),
        (bool(_CONTROL.search(passage.id)), "PASSAGE_ID_INVALID", "an id holds no control characters"),
        (not passage.text.strip(), "PASSAGE_EMPTY", "the text is empty or blank"),
        (len(passage.text) > 100_000, "PASSAGE_TOO_LONG", "a text has at most 100000 characters: cut it into several passages"),
        (len(keys) > 32, "METADATA_INVALID", "metadata have at most 32 keys"),
        ("" in keys, "METADATA_INVALID", "a metadata key is empty"),
        ("document" in keys, "METADATA_INVALID", "`document` is the field of that name, not a metadata key"),
    )
    return next((PassageFailure(passage.id, reason, message) for wrong, reason, message in problems if wrong), None)


def not_found(name: str) -> NotFound:
    """The error for a name without an index."""
    return NotFound("INDEX_NOT_FOUND", "no index {name}: create it first", name=name)


def sealed(name: str) -> FailedPrecondition:
    """The error for an ingest into an index that is sealed."""
    return FailedPrecondition("INDEX_SEALED", "index {name} is sealed: passages go into a new index", name=name)


def encoder_changed(index: Index, vectors: Vectors) -> FailedPrecondition:
    """The error for vectors of another length than those that are in the index."""
    message = "index {name} has vectors of {expected} dimensions, but its encoder {encoder} now makes {found}: make the index again"
    return FailedPrecondition(
        "ENCODER_CHANGED",
        message,
        name=index.name,
        expected=index.vector_dimensions,
        encoder=index.settings.encoder,
        found=vectors.dimensions,
    )


def _settings_error(name: str, rule: str) -> InvalidArgument:
    return InvalidArgument("INDEX_SETTINGS_INVALID", "{name} must be {rule}", name=name, rule=rule, field=f"settings.{name}")


def _search_error(name: str, rule: str) -> InvalidArgument:
    return InvalidArgument("SEARCH_SETTINGS_INVALID", "{name} must be {rule}", name=name, rule=rule, field=f"settings.{name}")
