"""What the service does with indexes and encoders, whichever they are: names, limits, the ingest, the search. Knows only their ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.retriever.domain import (
    INDEX_NAME,
    Encoder,
    Encoders,
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
    SearchSettings,
    Vectors,
    check_passage,
    not_found,
    sealed,
)

MAX_PART_PASSAGES = 1000
"""Passages in one message of an ingest."""
MAX_FAILURES = 10_000
"""Refused passages after which an ingest stops, because the list of them would not fit into a response."""


@dataclass(frozen=True, slots=True)
class Retriever:
    """What the service does, over its two ports."""

    indexes: Indexes
    encoders: Encoders
    default_encoder: str
    ingest_batch: int
    """Passages that are encoded and stored together."""

    async def create(self, name: str, settings: IndexSettings) -> Index:
        """An open index. Raises InvalidArgument, AlreadyExists, FailedPrecondition ENCODER_UNAVAILABLE."""
        if not INDEX_NAME.fullmatch(name):
            message = "{name!r} is no index name: use 1 to 128 lower-case letters, digits, '-' and '_'"
            raise InvalidArgument("INDEX_NAME_INVALID", message, name=name[:200], field="name")
        # The name of the default is stored, so that another default later does not change the index.
        settings = replace(settings, encoder=settings.encoder or self.default_encoder)
        await self.encoders.get(settings.encoder)
        return await self.indexes.create(name, settings)

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

    async def search(self, name: str, text: str, settings: SearchSettings) -> tuple[Hit, ...]:
        """Ranked passages. Raises InvalidArgument, NotFound, FailedPrecondition INDEX_NOT_SEALED or RERANKER_NOT_CONFIGURED."""
        if not text.strip():
            raise InvalidArgument("QUERY_EMPTY", "the query is empty or blank", field="query")
        if len(text) > 10_000:
            raise InvalidArgument("QUERY_TOO_LONG", "a query has at most 10000 characters", field="query")
        if settings.rerank:
            message = "this service has no reranker: search without rerank"
            raise FailedPrecondition("RERANKER_NOT_CONFIGURED", message, field="settings.rerank")
        index = await self.get(name)
        if not index.sealed:
            raise FailedPrecondition("INDEX_NOT_SEALED", "index {name} is open: seal it before searching", name=name)
        vector = None
        if settings.mode is not Mode.LEXICAL:
            vector = await (await self.encoders.get(index.settings.encoder)).queries([text])
        return await self.indexes.search(name, Query(text, vector, settings))

    async def ingest(self, parts: AsyncIterator[Part]) -> IngestReport:
        """Stores the passages of all parts. The next batch is encoded while the one before is being stored.

        Raises InvalidArgument for parts that contradict each other, NotFound, FailedPrecondition INDEX_SEALED, ResourceExhausted.
        """
        name, encoder = "", None
        failures: list[PassageFailure] = []
        waiting: list[Passage] = []
        passage_count = added_count = 0
        storing: asyncio.Task[int] | None = None
        try:
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
                if len(failures) > MAX_FAILURES:
                    message = "more than {count} passages were refused, the first for {reason}: {why}"
                    raise InvalidArgument(
                        "TOO_MANY_FAILURES", message, count=MAX_FAILURES, reason=failures[0].reason, why=failures[0].message
                    )
                while len(waiting) >= self.ingest_batch:
                    batch, waiting = waiting[: self.ingest_batch], waiting[self.ingest_batch :]
                    fresh, vectors = await self._encode(name, encoder, batch)
                    added_count += await storing if storing else 0
                    storing = asyncio.create_task(self.indexes.add(name, fresh, vectors))
                    passage_count += len(batch)
            if encoder is None:
                raise InvalidArgument("INDEX_NAME_MISSING", "the first message of an ingest must name the index", field="index")
            fresh, vectors = await self._encode(name, encoder, waiting)
            added_count += await storing if storing else 0
            storing = None
            added_count += await self.indexes.add(name, fresh, vectors)
        finally:
            if storing is not None:
                storing.cancel()
        return IngestReport(added_count, passage_count + len(waiting) - added_count, tuple(failures))

    async def _open_for_ingest(self, name: str) -> Encoder:
        if not name:
            raise InvalidArgument("INDEX_NAME_MISSING", "the first message of an ingest must name the index", field="index")
        index = await self.get(name)
        if index.sealed:
            raise sealed(name)
        return await self.encoders.get(index.settings.encoder)

    async def _encode(self, name: str, encoder: Encoder, batch: Sequence[Passage]) -> tuple[list[Passage], Vectors]:
        # What is stored already is not encoded again; a text that only another ingest in flight has is, and `add` skips it.
        present = await self.indexes.present(name, [passage.id for passage in batch])
        first: dict[str, Passage] = {}
        for passage in batch:
            if passage.id not in present:
                first.setdefault(passage.id, passage)
        vectors = await encoder.passages([passage.text for passage in first.values()]) if first else Vectors(0, b"")
        return list(first.values()), vectors


def _check_part(part: Part, name: str) -> None:
    if part.index not in ("", name):
        message = "one ingest fills one index: it began with {name}, then came {other}"
        raise InvalidArgument("INDEX_NAME_CHANGED", message, name=name, other=part.index, field="index")
    if len(part.passages) > MAX_PART_PASSAGES:
        message = "a message has {count} passages: send at most {limit}"
        raise InvalidArgument("TOO_MANY_PASSAGES", message, count=len(part.passages), limit=MAX_PART_PASSAGES, field="passages")
