"""What a reader gives, and how it keeps count while it reads. Knows no file format.

A row that breaks the format is *bad*: it stops the reader, or is left out and listed, as `bad_rows` says. A row that is sound but holds
no usable answer is *skipped* and listed with the reason. Nothing is left out without a trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.errors import BadRow, DataError
from flows.records import Document, Item

BadRows = Literal["error", "skip"]
"""What a reader does about bad rows: raise DataError with all of them, or leave them out and list them in `Source.bad_rows`."""


class RowError(ValueError):
    """Why a row cannot be used; becomes a BadRow with file and line."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sound row that gave no item. `line` counts from 1; `item` is its id ("" where the row has none)."""

    file: str
    line: int
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """All that was read from one source. For a folder of texts `rows_read` counts files."""

    items: tuple[Item, ...]
    documents: tuple[Document, ...]
    rows_read: int
    skipped: tuple[Skipped, ...] = ()
    bad_rows: tuple[BadRow, ...] = ()
    stand_alone: bool = True
    """False when questions make sense only beside their document ("What baselines do they use?"), as in Qasper."""


class Collector:
    """Gathers items and documents of one source and counts what it met. One use: fill it, then call `source` once."""

    def __init__(self, path: Path, bad_rows: BadRows) -> None:
        self.path = path
        self.rows_read = 0
        self._policy = bad_rows
        self._items: dict[str, Item] = {}
        self._lines: dict[str, str] = {}
        self._documents: dict[str, Document] = {}
        self._skipped: list[Skipped] = []
        self._bad: list[BadRow] = []

    @contextmanager
    def row(self, file: str, line: int) -> Iterator[None]:
        """One row: counts it and turns a RowError raised inside into a bad row. Add what it holds last, so that a bad row adds none."""
        self.rows_read += 1
        try:
            yield
        except RowError as error:
            self._bad.append(BadRow(file, line, str(error)))

    def add(self, item: Item, file: str, line: int) -> None:
        """Keep an item. RowError when its id is taken."""
        if item.id in self._items:
            raise RowError(f"duplicate id {item.id!r}, first seen at {self._lines[item.id]}")
        self._items[item.id] = item
        self._lines[item.id] = f"{file}:{line}"

    def skip(self, file: str, line: int, item: str, reason: str) -> None:
        """Record a sound row without a usable answer."""
        self._skipped.append(Skipped(file, line, item, reason))

    def add_document(self, document: Document) -> None:
        """Keep a document unless its id is known (the same page serves several questions) or it holds no paragraph."""
        if any(section.paragraphs for section in document.sections):
            self._documents.setdefault(document.id, document)

    def broken(self, file: str, line: int, reason: str, advice: str = "") -> DataError:
        """The error for a file that cannot be read on: nothing after `line` is known."""
        bad = (*self._bad, BadRow(file, line, reason))
        return DataError(f"{file} cannot be read", self.rows_read, bad, advice)

    def source(self, *, stand_alone: bool = True) -> Source:
        """The result. Raises DataError when there were no rows, or bad rows and they are not to be skipped, or nothing but bad rows."""
        if not self.rows_read:
            raise DataError(f"{self.path} holds no rows", advice="Check that it is the right file and that its download finished.")
        if self._bad and (self._policy == "error" or len(self._bad) == self.rows_read):
            many = f"{len(self._bad)} row{'' if len(self._bad) == 1 else 's'}"
            raise DataError(
                f"{self.path}: {many} cannot be used",
                self.rows_read,
                tuple(self._bad),
                "" if self._policy == "skip" else "Correct the rows, or set bad_rows: skip to leave them out.",
            )
        return Source(
            tuple(self._items.values()),
            tuple(self._documents.values()),
            self.rows_read,
            tuple(self._skipped),
            tuple(self._bad),
            stand_alone,
        )
