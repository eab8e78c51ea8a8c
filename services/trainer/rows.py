"""A file of JSON values, a value at a time, each with its place; what cannot be read is told in its place. Knows no format of rows.

The file is UTF-8 and holds a value a line (JSON lines; blank lines are passed over) or one list of values. Its first character tells which,
not its name. No more than one value is in memory, so a file may be larger than that.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

ROW_LIMIT = 16 * 1024 * 1024
"""Longest value, in bytes on a line and in characters in a list: millions of tokens, past every context."""
_TOO_LONG = f"longer than {ROW_LIMIT // 1024 // 1024} MiB"
_LEFT = "; what follows was not read"
_PIECE = 256 * 1024
_SPACE = re.compile(r"[ \t\r\n]*")
_OTHER_FORMS = {
    b"\x1f\x8b": "it is packed by gzip: unpack it",
    b"PAR1": "it is Parquet: write it as JSON lines",
    codecs.BOM_UTF16_LE: "it is UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16: save it as UTF-8",
}


class NotRows(Exception):
    """The file is of a form that is not read here; says what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """A value, or in `broken` why there is none."""

    place: str
    """`file:line`, in a list followed by the number of the row."""
    value: Any = None
    broken: str = ""


def rows(path: Path) -> Iterator[Row]:
    """All rows of a file. Raises OSError, NotRows."""
    with path.open("rb") as file:
        start = file.read(_PIECE)
        for magic, why in _OTHER_FORMS.items():
            if start.startswith(magic):
                raise NotRows(why)
        file.seek(0)
        if not start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield from _lines(file, path.name)
            return
    # Bytes that are no UTF-8 come as lone surrogates, so that they are found in their row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
        yield from _elements(_Window(text), path.name)


def _lines(file: BinaryIO, name: str) -> Iterator[Row]:
    reader, number = _Reader(), 0
    while line := file.readline(ROW_LIMIT + 1):
        number += 1
        place = f"{name}:{number}"
        if len(line) > ROW_LIMIT:
            while line and not line.endswith(b"\n"):
                line = file.readline(ROW_LIMIT)
            yield Row(place, broken=_TOO_LONG)
        elif line.strip():
            yield reader.row(place, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)


def _elements(window: _Window, name: str) -> Iterator[Row]:
    reader, number = _Reader(), 0
    window.take()
    mark = window.peek()
    while mark != "]":
        number += 1
        place = f"{name}:{window.line}, row {number}"
        try:
            value, text = window.value(reader)
        except RecursionError:
            yield Row(place, broken=f"nested too deeply{_LEFT}")
            return
        except json.JSONDecodeError as error:
            yield Row(place, broken=f"not JSON: {error.msg.removesuffix(' at')} in line {window.line_of(error.pos)}{_LEFT}")
            return
        except ValueError as error:
            yield Row(place, broken=f"not JSON: {error}{_LEFT}")
            return
        yield Row(place, value, reader.complaint(text))
        mark = window.take()
        if mark not in ("]", ",") or (mark == "," and window.peek() == "]"):
            what = f"expected a comma or the end of the list after row {number}" if mark else "the list has no end"
            yield Row(f"{name}:{window.line}", broken=f"not JSON: {what}{_LEFT}")
            return
    if number == 0:
        window.take()
    if window.peek():
        yield Row(f"{name}:{window.line}", broken=f"not JSON: more text after the list; is it JSON lines?{_LEFT}")


class _Reader:
    """A JSON decoder that is as strict as the standard: NaN and infinities are no JSON."""

    def __init__(self) -> None:
        self._constants: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._constants.append)

    def row(self, place: str, line: bytes) -> Row:
        """A line as a row."""
        try:
            self._constants.clear()
            value = self._decoder.decode(line.decode().rstrip())
        except UnicodeDecodeError as error:
            return Row(place, broken=f"not UTF-8: byte 0x{line[error.start]:02x} at offset {error.start} of the line")
        except RecursionError:
            return Row(place, broken="nested too deeply")
        except json.JSONDecodeError as error:
            return Row(place, broken=f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
        except ValueError as error:
            return Row(place, broken=f"not JSON: {error}")
        return Row(place, value, self.complaint(""))

    def value(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at` and where it ends. Raises ValueError, RecursionError."""
        self._constants.clear()
        return self._decoder.raw_decode(text, at)

    def complaint(self, text: str) -> str:
        """What is wrong with the value last read, whose source is `text`; empty if nothing is."""
        if self._constants:
            return f"not JSON: {self._constants[0]} is no number there; write null, or leave it out"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"not UTF-8: byte 0x{ord(text[error.start]) - 0xDC00:02x}"
        return ""


class _Window:
    """A text, seen a piece at a time."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self.line = 1
        """Line of what comes next."""

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._move(space.end() if space else self._at)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self) -> str:
        """The same, and goes past it."""
        mark = self.peek()
        self._move(self._at + len(mark))
        return mark

    def value(self, reader: _Reader) -> tuple[Any, str]:
        """The next value and its source. Raises ValueError, RecursionError."""
        self.peek()
        while True:
            try:
                value, end = reader.value(self._text, self._at)
                # A number may go on in the next piece.
                if end < len(self._text) or not self._more():
                    text = self._text[self._at : end]
                    self._move(end)
                    return value, text
            except json.JSONDecodeError as error:
                # Where a value was cut, the decoder stops within a word of the cut (-Infinity is the longest), or at the string there.
                cut = error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated string")
                if not cut or not self._more():
                    raise
            if len(self._text) - self._at > ROW_LIMIT + _PIECE:
                raise ValueError(f"a value {_TOO_LONG}, or a quotation mark or bracket that is never closed")

    def line_of(self, position: int) -> int:
        """Line of a position that an error of `value` tells."""
        return self.line + self._text.count("\n", self._at, position)

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        # As much again as is there, so that a long value is not begun anew too often.
        left = self._text[self._at :]
        piece = self._file.read(max(_PIECE, len(left)))
        if piece:
            self._text, self._at = left + piece, 0
        return bool(piece)
