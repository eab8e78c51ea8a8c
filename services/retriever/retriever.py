"""What the service does with indexes and models, whichever they are: names, limits, the ingest, the search. Knows only their ports."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.retriever.domain import (
    INDEX_NAME,
    Encoder,
    Encoders,
    Found,
    Hit,
    Index,
    Indexes,
    IndexSettings,
    IngestReport,
    Mode,
    Part,
    Passage,
    PassageFailure,
    Query,
    Reranker,
    SearchSettings,
    Vectors,
    check_passage,
    not_found,
    sealed,
)
from services.retriever.fusion import SCORE_DECIMALS

_T = TypeVar("_T")

MAX_PART_PASSAGES = 1000
"""Passages in one message of an ingest."""
MAX_FAILURES = 10_000
"""Refused passages after which an ingest stops, because the list of them would not fit into a response."""


@dataclass(frozen=True, slots=True)
class Retriever:
    """What the service does, over its ports."""

    indexes: Indexes
    encoders: Encoders
    default_encoder: str
    ingest_batch: int
    """Passages that are encoded and stored together."""
    reranker: Reranker | None = None
    rerank_window: int = 50
    """Passages of a search that the reranker sees, 1 to 1000."""

    async def create(self, name: str, settings: IndexSettings) -> tuple[Index, int]:
        """An open index, and the longest input of its encoder in tokens (0 for no limit).

        Raises InvalidArgument, AlreadyExists, FailedPrecondition ENCODER_UNAVAILABLE.
        """
        if not INDEX_NAME.fullmatch(name):
            message = "{name!r} is no index name: use 1 to 128 lower-case letters, digits, '-' and '_'"
            raise InvalidArgument("INDEX_NAME_INVALID", message, name=name[:200], field="name")
        # The name of the default is stored, so that another default later does not change the index.
        settings = replace(settings, encoder=settings.encoder or self.default_encoder)
        encoder = await self.encoders.get(settings.encoder)
        return await self.indexes.create(name, settings), encoder.max_tokens

    async def get(self, name: str) -> Index:
        """The index. Raises NotFound."""
        if not INDEX_NAME.fullmatch(name):
            raise not_found(name)
        return await self.indexes.get(name)

    async def seal(self, name: str) -> Index:
        """The index, sealed. Raises NotFound, FailedPrecondition INDEX_EMPTY."""
        index = await self.get(name)
        return index if index.sealed else await self.indexes.seal(name)

    async def delete(self, name: str) -> None:
        """Drops the index. Raises NotFound."""
        if not INDEX_NAME.fullmatch(name):
            raise not_found(name)
        await self.indexes.delete(name)

    async def page(self, size: int, token: str) -> tuple[tuple[Index, ...], str]:
        """Indexes by name from after `token`, and the token of the next page ("" on the last). Raises InvalidArgument."""
        if not 1 <= size <= 1000:
            raise InvalidArgument("PAGE_SIZE_INVALID", "page_size must be between 1 and 1000", field="page_size")
        if token and not INDEX_NAME.fullmatch(token):
            raise InvalidArgument("PAGE_TOKEN_INVALID", "page_token must come from the response before", field="page_token")
        names = [name for name in await self.indexes.names() if name > token]
        found = []
        for name in names[:size]:
            try:
                found.append(await self.indexes.get(name))
            except NotFound:  # deleted meanwhile
                continue
        return tuple(found), names[size - 1] if len(names) > size else ""

    async def search(self, name: str, text: str, settings: SearchSettings) -> Found:
        """Ranked passages. Raises InvalidArgument, NotFound, FailedPrecondition INDEX_NOT_SEALED or RERANKER_NOT_CONFIGURED,
        ResourceExhausted.
        """
        if not text.strip():
            raise InvalidArgument("QUERY_EMPTY", "the query is empty or blank", field="query")
        if len(text) > 10_000:
            raise InvalidArgument("QUERY_TOO_LONG", "a query has at most 10000 characters", field="query")
        reranker = self.reranker if settings.rerank else None
        if settings.rerank and reranker is None:
            message = "this service has no reranker: search without rerank, or start it with TUNETRIAL_RERANKER"
            raise FailedPrecondition("RERANKER_NOT_CONFIGURED", message, field="settings.rerank")
        index = await self.get(name)
        if not index.sealed:
            raise FailedPrecondition("INDEX_NOT_SEALED", "index {name} is open: seal it before searching", name=name)
        vector = None
        if settings.mode is not Mode.LEXICAL:
            vector = await (await self.encoders.get(index.settings.encoder)).queries([text])
        if reranker is None:
            return Found(await self.indexes.search(name, Query(text, vector, settings)))
        hits = await self.indexes.search(name, Query(text, vector, settings.candidates(self.rerank_window)))
        return Found((await self._reranked(reranker, text, hits))[: settings.k], reranker.identity)

    async def _reranked(self, reranker: Reranker, text: str, hits: tuple[Hit, ...]) -> tuple[Hit, ...]:
        """The first hits by their scores, equal scores in the order they had; the others after them, as they were."""
        window, others = hits[: self.rerank_window], hits[self.rerank_window :]
        # Rounded as the scores of the legs are: the last bits vary with the batch.
        scores = [round(score, SCORE_DECIMALS) for score in await reranker.scores(text, [hit.passage.text for hit in window])]
        scored = [replace(hit, score=score, rerank_score=score) for hit, score in zip(window, scores, strict=True)]
        scored.sort(key=lambda hit: -hit.score)
        return tuple(replace(hit, rank=rank) for rank, hit in enumerate((*scored, *others), 1))

    async def ingest(self, parts: AsyncIterator[Part]) -> IngestReport:
        """Stores the passages of all parts. While a batch is being stored, the next is being encoded, and once it is stored, one more is
        there for the encoder to go on with.

        Raises InvalidArgument for parts that contradict each other, NotFound, FailedPrecondition INDEX_SEALED, ResourceExhausted.
        """
        failures: list[PassageFailure] = []
        async with (
            aclosing(self._batches(parts, failures)) as batches,
            aclosing(_in_order((self._encode(batch) async for batch in batches), at_once=2)) as encoded,
            aclosing(_in_order((self._store(each) async for each in encoded), at_once=1)) as stored,
        ):
            added_count = skipped_count = 0
            async for report in stored:
                added_count += report.added_count
                skipped_count += report.skipped_count
                failures += report.failures
                _check_count(failures)
        return IngestReport(added_count, skipped_count, tuple(failures))

    async def _batches(self, parts: AsyncIterator[Part], failures: list[PassageFailure]) -> AsyncGenerator[_Batch]:
        """The usable passages of all parts; the others go into `failures`."""
        name, encoder = "", None
        waiting: list[Passage] = []
        async for part in parts:
            if encoder is None:
                name, encoder = part.index, await self._open_for_ingest(part.index)
            _check_part(part, name)
            for passage in part.passages:
                failure = check_passage(passage)
                if failure is None:
                    waiting.append(passage)
                else:
                    failures.append(failure)
            _check_count(failures)
            while len(waiting) >= self.ingest_batch:
                yield _Batch(name, encoder, waiting[: self.ingest_batch])
                waiting = waiting[self.ingest_batch :]
        if encoder is None:
            raise InvalidArgument("INDEX_NAME_MISSING", "the first message of an ingest must name the index", field="index")
        if waiting:
            yield _Batch(name, encoder, waiting)

    async def _open_for_ingest(self, name: str) -> Encoder:
        if not name:
            raise InvalidArgument("INDEX_NAME_MISSING", "the first message of an ingest must name the index", field="index")
        index = await self.get(name)
        if index.sealed:
            raise sealed(name)
        return await self.encoders.get(index.settings.encoder)

    async def _encode(self, batch: _Batch) -> _Encoded:
        # What is stored already is not encoded again; a text that is on its way there may be, and `add` skips it.
        present = await self.indexes.present(batch.index, [passage.id for passage in batch.passages])
        fresh: dict[str, Passage] = {}
        for passage in batch.passages:
            if passage.id not in present:
                fresh.setdefault(passage.id, passage)
        vectors = await batch.encoder.passages([passage.text for passage in fresh.values()]) if fresh else Vectors(0, b"")
        return _Encoded(batch, tuple(fresh.values()), vectors)

    async def _store(self, encoded: _Encoded) -> IngestReport:
        report = await self.indexes.add(encoded.batch.index, encoded.fresh, encoded.vectors)
        return replace(report, skipped_count=len(encoded.batch.passages) - report.added_count - len(report.failures))


@dataclass(frozen=True, slots=True)
class _Batch:
    index: str
    encoder: Encoder
    passages: list[Passage]


@dataclass(frozen=True, slots=True)
class _Encoded:
    batch: _Batch
    fresh: tuple[Passage, ...]
    vectors: Vectors


async def _in_order(calls: AsyncIterator[Coroutine[Any, Any, _T]], at_once: int) -> AsyncGenerator[_T]:
    """Results of the calls, in their order; so many of them run at once."""
    running: deque[asyncio.Task[_T]] = deque()
    try:
        async for call in calls:
            running.append(asyncio.create_task(call))
            if len(running) == at_once:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _check_count(failures: Sequence[PassageFailure]) -> None:
    if len(failures) > MAX_FAILURES:
        message = "more than {count} passages were refused, the first for {reason}: {why}"
        raise InvalidArgument("TOO_MANY_FAILURES", message, count=MAX_FAILURES, reason=failures[0].reason, why=failures[0].message)


def _check_part(part: Part, name: str) -> None:
    if part.index not in ("", name):
        message = "one ingest fills one index: it began with {name}, then came {other}"
        raise InvalidArgument("INDEX_NAME_CHANGED", message, name=name, other=part.index, field="index")
    if len(part.passages) > MAX_PART_PASSAGES:
        message = "a message has {count} passages: send at most {limit}"
        raise InvalidArgument("TOO_MANY_PASSAGES", message, count=len(part.passages), limit=MAX_PART_PASSAGES, field="passages")
