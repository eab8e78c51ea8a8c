"""Vectors of passages kept on disk, so that a text is encoded once by an encoder, in whatever index it is. Knows no model and no index.

A vector is found by the hash of its text and of its encoder's fingerprint. The file is SQLite's: several processes of one machine may
share it (not over a network file system), and one that is killed leaves it whole. It is only ever a help: when it cannot be read or
written (broken, full disk, locked for long), texts are encoded as if there were none, the log says so once, and it is tried again
after a rest. A row carries a checksum, so that what a disk has changed is a miss and not a vector.

Vectors of questions are not kept: they are short, and seldom asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.retriever.domain import Encoder, Encoders, Vectors

_log = structlog.get_logger()

_LOCKED_S = 2.0
_CHECK_BYTES = 4
_ROW_BYTES = 100
"""What a row takes beside its vector."""
_OPENING = """
    PRAGMA page_size = 8192;
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL);
"""


class EmbeddingCache:
    """The file. One thread of its own does what waits for the disk."""

    def __init__(self, folder: Path, max_bytes: int, rest_s: float = 60.0) -> None:
        """Opens nothing yet. What came first makes room for what is new once the file has `max_bytes` (beside it are some MB of a log)."""
        self._path, self._max_bytes, self._rest_s = folder / "embeddings.sqlite", max_bytes, rest_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="embedding-cache")
        self._opened: sqlite3.Connection | None = None
        self._rests_until = 0.0
        self._told = False

    async def close(self) -> None:
        """Lets writes that have begun end."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._let_go)
        self._executor.shutdown()

    async def find(self, fingerprint: str, texts: Sequence[str]) -> dict[str, bytes]:
        """Those of the texts whose vectors are there, with the rows of `Vectors`."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._find, fingerprint, texts)

    def keep(self, fingerprint: str, rows: Mapping[str, bytes]) -> None:
        """Stores vectors by their texts; returns at once, and does not fail."""
        self._executor.submit(self._keep, fingerprint, rows)

    def _find(self, fingerprint: str, texts: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        if time.monotonic() < self._rests_until:
            return found
        try:
            connection = self._connection()
            for text in texts:
                key = _key(fingerprint, text)
                row = connection.execute("SELECT value FROM vectors WHERE key = ?", (key,)).fetchone()
                if row is not None and (vector := _checked(key, row[0])):
                    found[text] = vector
        except (sqlite3.Error, OSError) as error:
            self._rest(error)
        return found

    def _keep(self, fingerprint: str, rows: Mapping[str, bytes]) -> None:
        if time.monotonic() < self._rests_until:
            return
        try:
            connection = self._connection()
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                self._make_room(connection, sum(len(vector) + _ROW_BYTES for vector in rows.values()), 2 * len(rows))
                for text, vector in rows.items():
                    key = _key(fingerprint, text)
                    # Replaced and not ignored: a row may be there whose checksum was wrong.
                    connection.execute("INSERT OR REPLACE INTO vectors (key, value) VALUES (?, ?)", (key, vector + _check(key, vector)))
            if _number(connection, "page_count") * _number(connection, "page_size") > self._max_bytes:
                connection.executescript(f"PRAGMA incremental_vacuum({len(rows)})")  # `execute` would free a single page
        except (sqlite3.Error, OSError) as error:
            self._rest(error)
        else:
            self._told = False

    def _make_room(self, connection: sqlite3.Connection, wanted: int, count: int) -> None:
        """Drops the oldest rows, `count` at a time; after the bound was lowered, what is too much goes over several calls."""
        for _ in range(8):
            used = (_number(connection, "page_count") - _number(connection, "freelist_count")) * _number(connection, "page_size")
            (oldest,) = connection.execute("SELECT min(id) FROM vectors").fetchone()
            if oldest is None or used + wanted <= self._max_bytes:
                break
            connection.execute("DELETE FROM vectors WHERE id < ?", (oldest + count,))

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            opened = sqlite3.connect(self._path, timeout=_LOCKED_S, isolation_level=None)
            try:
                opened.executescript(_OPENING)
            except BaseException:
                opened.close()
                raise
            self._opened = opened
        return self._opened

    def _rest(self, error: Exception) -> None:
        if not self._told:
            message = "texts are encoded without it: make room, or delete the file if it is broken"
            _log.warning("embedding cache cannot be used", file=str(self._path), why=str(error), message=message)
        self._told = True
        self._rests_until = time.monotonic() + self._rest_s
        self._let_go()

    def _let_go(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            with suppress(sqlite3.Error):  # of a file that is broken
                opened.close()


@dataclass(frozen=True, slots=True)
class CachedEncoders:
    """Encoders whose passages go through the cache; implements `Encoders`."""

    encoders: Encoders
    cache: EmbeddingCache

    async def get(self, name: str) -> CachedEncoder:
        """See `Encoders`."""
        return CachedEncoder(await self.encoders.get(name), self.cache)


@dataclass(frozen=True, slots=True)
class CachedEncoder:
    """An encoder that sees a passage only when its vector is not in the cache; implements `Encoder`."""

    encoder: Encoder
    cache: EmbeddingCache

    @property
    def fingerprint(self) -> str:
        """See `Encoder`."""
        return self.encoder.fingerprint

    @property
    def max_tokens(self) -> int:
        """See `Encoder`."""
        return self.encoder.max_tokens

    async def queries(self, texts: Sequence[str]) -> Vectors:
        """See `Encoder`; not cached."""
        return await self.encoder.queries(texts)

    async def passages(self, texts: Sequence[str]) -> Vectors:
        """See `Encoder`; a text that comes twice is encoded once."""
        rows = await self.cache.find(self.fingerprint, texts)
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        if missing:
            vectors = await self.encoder.passages(missing)
            size = 4 * vectors.dimensions
            fresh = {text: vectors.data[row * size : (row + 1) * size] for row, text in enumerate(missing)}
            self.cache.keep(self.fingerprint, fresh)
            rows |= fresh
        return Vectors(len(rows[texts[0]]) // 4, b"".join(rows[text] for text in texts))


def _key(fingerprint: str, text: str) -> bytes:
    return hashlib.sha256(f"{fingerprint}\n{hashlib.sha256(text.encode()).hexdigest()}".encode()).digest()


def _check(key: bytes, vector: bytes) -> bytes:
    return zlib.crc32(vector, zlib.crc32(key)).to_bytes(_CHECK_BYTES, "big")


def _checked(key: bytes, value: object) -> bytes | None:
    """The vector of a row; None where it is not what was written."""
    if not isinstance(value, bytes) or value[-_CHECK_BYTES:] != _check(key, value[:-_CHECK_BYTES]):
        return None
    return value[:-_CHECK_BYTES]


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    number: int = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    return number
