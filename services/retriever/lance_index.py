"""Indexes by LanceDB on a local disk. Knows no encoder and no wire.

An index is a folder: `manifest.json` (what it is; replaced whole, never edited), `passages.lance` (while open, in the order they came) and
`sealed.lance` (sorted by passage id, with a full-text index). The manifest decides which table counts, so a process killed at any time
leaves an index that is open with all that was acknowledged, or sealed. The dense leg compares the query with every vector: exact, and
linear in the size of the index (`max_passages` bounds it). BM25 is Lance's, whose k1 and b are fixed at 1.2 and 0.75.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

os.environ.setdefault("LANCEDB_LOG", "error")  # read when the library is imported; it warns at each new table

import lancedb
from lancedb.expr import Expr
from lancedb.index import FTS, BTree, lang_mapping
from lancedb.query import AsyncFTSQuery, AsyncVectorQuery, FullTextOperator, MatchQuery

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted, TunetrialError
from services.retriever.domain import (
    ContentHash,
    Hit,
    Index,
    IndexSettings,
    IngestReport,
    Mode,
    Passage,
    Query,
    Vectors,
    encoder_changed,
    not_found,
    sealed,
)
from services.retriever.fusion import Scored, fuse, ranked, settled
from services.retriever.index_files import explained, read_manifest, sync, write_manifest
from services.retriever.lance_rows import TEXTS, predicate, to_arrow, to_passages

_T = TypeVar("_T")
_SEAL_ROWS = 4096


@dataclass(slots=True)
class _Opened:
    """An index of this process. `ids` of an open index are in memory, so that an ingest can skip what is there."""

    index: Index
    database: lancedb.AsyncConnection
    table: lancedb.AsyncTable | None
    ids: set[str] = field(default_factory=set)


class LanceIndexes:
    """All indexes under a folder that this process alone uses."""

    def __init__(self, data_dir: Path, max_passages: int) -> None:
        """Creates the folder. Raises FailedPrecondition DATA_DIR_IN_USE, Unavailable INDEX_STORE_UNAVAILABLE."""
        self._folder, self._max_passages = data_dir.resolve(), max_passages
        self._opened: dict[str, _Opened] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._writes: set[asyncio.Task[object]] = set()
        with explained("any", writing=True):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self._folder / ".lock").open("w")
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock_file.close()
                message = "another retriever uses {folder}: stop it, or set TUNETRIAL_DATA_DIR to another folder"
                raise FailedPrecondition("DATA_DIR_IN_USE", message, folder=data_dir) from None
            for left in self._folder.glob(".*-*"):  # an index that was being created or deleted when the process ended
                shutil.rmtree(left)

    async def ready(self) -> None:
        """Always: the folder is locked, and what is wrong with a disk is told by the call that meets it."""

    async def close(self) -> None:
        """Lets writes that have begun end, then gives the folder free."""
        await asyncio.gather(*self._writes, return_exceptions=True)
        self._lock_file.close()

    async def create(self, name: str, settings: IndexSettings) -> Index:
        """See `Indexes`."""
        if (settings.bm25_k1, settings.bm25_b) != (1.2, 0.75):
            message = "the embedded index scores with k1 1.2 and b 0.75 only: leave them unset"
            raise InvalidArgument("INDEX_SETTINGS_INVALID", message, field="settings.bm25_k1")
        languages = sorted(lang_mapping.values())
        if settings.language and settings.language not in languages:
            message = "no language {language}: use one of {languages}, or none"
            raise InvalidArgument(
                "INDEX_SETTINGS_INVALID", message, language=settings.language, languages=", ".join(languages), field="settings.language"
            )
        async with self._lock(name):
            if (self._folder / name).exists():
                index = (await self._read(name)).index
                if index.settings != settings:
                    message = "index {name} exists with other settings ({settings}): choose another name or delete it"
                    raise AlreadyExists("INDEX_SETTINGS_DIFFER", message, name=name, settings=asdict(index.settings))
                return index
            index = Index(name, settings, datetime.now(UTC))
            await asyncio.to_thread(self._make, index)
            return index

    def _make(self, index: Index) -> None:
        partial = self._folder / f".new-{uuid.uuid4().hex}"
        with explained(index.name, writing=True):
            try:
                partial.mkdir()
                write_manifest(partial, index)
                partial.rename(self._folder / index.name)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            sync(self._folder)

    async def get(self, name: str) -> Index:
        """See `Indexes`."""
        return (await self._open(name)).index

    async def names(self) -> Sequence[str]:
        """See `Indexes`."""

        def read() -> list[str]:
            with explained("any", writing=False):
                return sorted(entry.name for entry in os.scandir(self._folder) if entry.is_dir() and not entry.name.startswith("."))

        return await asyncio.to_thread(read)

    async def delete(self, name: str) -> None:
        """See `Indexes`."""

        def remove() -> None:
            # Renamed first: from then on the index does not exist, however long its files take to go.
            gone = self._folder / f".old-{uuid.uuid4().hex}"
            with explained(name, writing=True):
                try:
                    (self._folder / name).rename(gone)
                except FileNotFoundError:
                    raise not_found(name) from None
                shutil.rmtree(gone)

        async with self._lock(name):
            self._opened.pop(name, None)
            await asyncio.to_thread(remove)

    async def present(self, name: str, ids: Sequence[str]) -> frozenset[str]:
        """See `Indexes`."""
        return frozenset((await self._open(name)).ids.intersection(ids))

    async def add(self, name: str, passages: Sequence[Passage], vectors: Vectors) -> IngestReport:
        """See `Indexes`; all of them or none."""
        added_count = await self._whole(self._add(name, passages, vectors))
        return IngestReport(added_count, len(passages) - added_count, ())

    async def _add(self, name: str, passages: Sequence[Passage], vectors: Vectors) -> int:
        async with self._changing(name) as opened:
            if opened.index.sealed:
                raise sealed(name)
            rows = [row for row, passage in enumerate(passages) if passage.id not in opened.ids]
            if not rows:
                return 0
            if len(opened.ids) + len(rows) > self._max_passages:
                message = "index {name} is full: the embedded index holds {limit} passages (TUNETRIAL_MAX_PASSAGES)"
                raise ResourceExhausted("INDEX_FULL", message, name=name, limit=self._max_passages)
            if opened.index.vector_dimensions not in (0, vectors.dimensions):
                raise encoder_changed(opened.index, vectors)
            batch = to_arrow([passages[row] for row in rows], vectors.take(rows))
            if opened.table is None:
                opened.table = await opened.database.create_table("passages", batch, mode="overwrite")
            else:
                await opened.table.add(batch)
            opened.ids.update(passages[row].id for row in rows)
            opened.index = replace(opened.index, passage_count=len(opened.ids), vector_dimensions=vectors.dimensions)
            return len(rows)

    async def seal(self, name: str) -> Index:
        """See `Indexes`."""
        return await self._whole(self._seal(name))

    async def _seal(self, name: str) -> Index:
        async with self._changing(name) as opened:
            index = opened.index
            if index.sealed:
                return index
            if opened.table is None or not opened.ids:
                raise FailedPrecondition("INDEX_EMPTY", "index {name} has no passages: ingest some before sealing", name=name)
            folder = self._folder / name
            await asyncio.to_thread(_drop, folder, "sealed")  # of a seal that was broken off
            try:
                table, content_hash = await _sorted(opened, index.settings)
            except BaseException:
                await asyncio.to_thread(_drop, folder, "sealed")
                raise
            done = replace(index, seal_time=datetime.now(UTC), content_hash=content_hash)
            await asyncio.to_thread(write_manifest, folder, done)
            opened.index, opened.table, opened.ids = done, table, set()
            await asyncio.to_thread(_drop, folder, "passages")
            return done

    async def search(self, name: str, query: Query) -> tuple[Hit, ...]:
        """See `Indexes`."""
        opened = await self._open(name)
        index, table, settings = opened.index, opened.table, query.settings
        if query.vector is not None and query.vector.dimensions != index.vector_dimensions:
            raise encoder_changed(index, query.vector)
        with self._reading(name):
            assert table is not None  # noqa: S101  a sealed index has a table
            where = predicate(settings.filters)
            lexical, dense = await asyncio.gather(
                _lexical(table, query, where) if settings.mode is not Mode.DENSE else _nothing(),
                _dense(table, query, where) if settings.mode is not Mode.LEXICAL else _nothing(),
            )
            found = fuse(
                lexical,
                dense,
                k=settings.k,
                fusion_k=settings.fusion_k,
                lexical_weight=settings.lexical_weight,
                dense_weight=settings.dense_weight,
            )
            if not found:
                return ()
            rows = await table.take_row_ids([hit.key for hit in found]).select(list(TEXTS)).with_row_id().to_arrow()
        passages = dict(zip(rows["_rowid"].to_pylist(), to_passages(rows), strict=True))
        return tuple(
            Hit(passages[hit.key], rank, hit.score, hit.lexical_rank, hit.lexical_score, hit.dense_rank, hit.dense_score)
            for rank, hit in enumerate(found, 1)
        )

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _whole(self, work: Coroutine[object, object, _T]) -> _T:
        # A caller who goes away must not stop a write half-way: what is on disk and what this process knows would differ.
        task = asyncio.ensure_future(work)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    async def _open(self, name: str) -> _Opened:
        if name in self._opened:
            return self._opened[name]
        async with self._lock(name):
            return await self._read(name)

    @asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[_Opened]:
        async with self._lock(name):
            opened = await self._read(name)
            try:
                with explained(name, writing=True):
                    yield opened
            except TunetrialError as error:
                if error.__cause__ is not None:  # the disk has the truth now: read it again
                    self._opened.pop(name, None)
                raise

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            with explained(name, writing=False):
                yield
        except TunetrialError:
            if not (self._folder / name).exists():
                raise not_found(name) from None
            raise

    async def _read(self, name: str) -> _Opened:
        if name in self._opened:
            return self._opened[name]
        folder = self._folder / name
        with explained(name, writing=False):
            index = await asyncio.to_thread(read_manifest, folder)
            database = await lancedb.connect_async(folder)
            opened = _Opened(index, database, None)
            if index.sealed:
                await asyncio.to_thread(_drop, folder, "passages")  # the process may have ended just after the manifest was written
                opened.table = await database.open_table("sealed")
                if await opened.table.count_rows() != index.passage_count:
                    raise ValueError(f"its table does not hold {index.passage_count} passages")
            elif any((folder / "passages.lance" / "_versions").glob("*.manifest")):  # otherwise nothing was ever stored
                opened.table = await database.open_table("passages")
                rows = await opened.table.query().select(["id"]).to_arrow()
                opened.ids.update(rows["id"].to_pylist())
                dimensions = (await opened.table.schema()).field("vector").type.list_size
                opened.index = replace(index, passage_count=len(opened.ids), vector_dimensions=dimensions)
        self._opened[name] = opened
        return opened


def _drop(folder: Path, table: str) -> None:
    shutil.rmtree(folder / f"{table}.lance", ignore_errors=True)


async def _sorted(opened: _Opened, settings: IndexSettings) -> tuple[lancedb.AsyncTable, str]:
    """The table to search, and the content hash."""
    assert opened.table is not None  # noqa: S101  an index with passages has a table
    digest = ContentHash(settings)
    table: lancedb.AsyncTable | None = None
    async for rows in _by_id(opened.table):
        await asyncio.to_thread(_hash, digest, rows)
        if table is None:
            table = await opened.database.create_table("sealed", rows, mode="overwrite")
        else:
            await table.add(rows)
    assert table is not None  # noqa: S101  it has rows
    words = FTS(
        base_tokenizer="icu",  # words by Unicode rules: also Chinese, Japanese and Thai
        max_token_length=255,
        language=settings.language or "English",
        stem=bool(settings.language),
        remove_stop_words=bool(settings.language),
        ascii_folding=False,  # accents count, as with Elasticsearch's standard analyzer
        num_workers=1,  # the same layout, and so the same order, every time
    )
    await table.create_index("text", config=words)
    await table.create_index("document", config=BTree())
    return table, digest.hexdigest()


async def _nothing() -> None:
    return None


async def _lexical(table: lancedb.AsyncTable, query: Query, where: Expr | None) -> tuple[Scored[int], ...]:
    # A MatchQuery is words only: no character of the query is an operator.
    words = MatchQuery(
        query.text,
        "text",
        boost=1.0,
        fuzziness=0,
        max_expansions=50,
        operator=FullTextOperator.OR,
        prefix_length=0,
        document_granularity=None,
    )

    def ask() -> AsyncFTSQuery:
        return table.query().nearest_to_text(words).select(["_score"])

    return await _leg(ask, where, query.settings.depth, "_score", lambda score: score)


async def _dense(table: lancedb.AsyncTable, query: Query, where: Expr | None) -> tuple[Scored[int], ...]:
    assert query.vector is not None  # noqa: S101  the dense leg is asked with a vector only
    vector = pa.Array.from_buffers(pa.float32(), query.vector.dimensions, [None, pa.py_buffer(query.vector.data)])

    def ask() -> AsyncVectorQuery:
        return table.query().nearest_to(vector).distance_type("dot").select(["_distance"])

    # Of unit vectors, Lance's dot distance is 1 - cosine; rounding of float32 may step over the ends of the range.
    return await _leg(ask, where, query.settings.depth, "_distance", lambda distance: min(1.0, max(-1.0, 1.0 - distance)))


async def _leg(
    ask: Callable[[], AsyncFTSQuery | AsyncVectorQuery], where: Expr | None, depth: int, column: str, score: Callable[[float], float]
) -> tuple[Scored[int], ...]:
    """The best `depth` rows. Where rows beyond it score the same as the last, enough are read to choose among them by id."""
    limit = depth + 1
    while True:
        asked = ask().with_row_id().limit(limit)
        rows = await (asked if where is None else asked.where(where)).to_arrow()
        pairs = zip(rows["_rowid"].to_pylist(), rows[column].to_pylist(), strict=True)
        hits = ranked((Scored(key, score(value)) for key, value in pairs), limit)
        if settled(hits, depth, limit):
            return hits[:depth]
        limit *= 4


async def _by_id(table: lancedb.AsyncTable) -> AsyncIterator[pa.Table]:
    """All rows in the order of their ids (that of their UTF-8 bytes), in chunks."""
    places = await table.query().select(["id"]).with_row_id().to_arrow()
    rows = (await asyncio.to_thread(places.sort_by, "id"))["_rowid"].to_pylist()
    for start in range(0, len(rows), _SEAL_ROWS):
        chunk = await table.take_row_ids(rows[start : start + _SEAL_ROWS]).select([*TEXTS, "vector"]).to_arrow()
        yield chunk.sort_by("id")  # rows come back in the order of the table


def _hash(digest: ContentHash, rows: pa.Table) -> None:
    for passage in to_passages(rows):
        digest.add(passage)
