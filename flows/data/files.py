"""Bytes to text to rows with line numbers. Knows gzip, encodings, JSON and JSON lines; knows no dataset.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one. Any other encoding is an error: a guess would be silent. Compression
is recognised by content, so a `.gz` that was already unpacked by a browser is read as well. Line ends may be LF or CRLF.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Generator, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from flows.data.fields import Row, as_row
from flows.data.source import Collector, RowError
from flows.errors import DataError, UserError

_GZIP_MAGIC = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
_GZIP_ADVICE = "Download it again, or test it with: gzip -t"
_SPACE = re.compile(r"[ \t\r\n]*")


def suffix(path: Path) -> str:
    """The suffix in lower case that names the format: that before `.gz`, where there is one."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def files_of(path: Path, suffixes: Set[str]) -> list[Path]:
    """The file itself, or the files of a folder that have one of the suffixes, in order of name. UserError when there is none."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if suffix(file) in suffixes)
    if not files:
        raise UserError(f"The folder {path} holds no file named *{' or *'.join(sorted(suffixes))}, nor one of these with .gz.")
    return files


def open_binary(path: Path) -> BinaryIO:
    """The file, unpacked if it is gzip. UserError when it cannot be opened."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP_MAGIC
        return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a file.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.") from error


def read_bytes(path: Path) -> bytes:
    """The whole content, unpacked. DataError when it is empty or the gzip is corrupt."""
    with open_binary(path) as file:
        try:
            data = file.read()
        except _GZIP_ERRORS as error:
            raise DataError(f"{path}: the gzip file is corrupt: {error}", advice=_GZIP_ADVICE) from error
    if not data.strip():
        raise DataError(f"{path} is empty", advice="Check that it is the right file and that its download finished.")
    return data


def decode(data: bytes) -> str:
    """Text by its byte order mark, else UTF-8. RowError that says where the first wrong byte is."""
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"byte 0x{data[error.start]:02x} at offset {error.start}" if error.start < len(data) else "the end"
        raise RowError(f"not valid {'UTF-16' if encoding == 'utf-16' else 'UTF-8'} ({what}); save the file as UTF-8") from None


def read_text(path: Path) -> str:
    """A whole text file, as `read_bytes` and `decode`; a wrong byte raises DataError with its line."""
    data = read_bytes(path)
    try:
        return decode(data)
    except RowError as error:
        raise Collector(path, "error").broken(str(path), _line_of_wrong_byte(data), str(error)) from None


def _line_of_wrong_byte(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 1


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a JSON lines file. `line` counts from 1."""

    file: str
    line: int
    data: bytes

    def parse(self) -> Row:
        """The row as an object. RowError when it is not."""
        try:
            return as_row(json.loads(decode(self.data)), "the row")
        except json.JSONDecodeError as error:
            raise RowError(
                "broken JSON: the row ends too early" if _cut(error) else f"broken JSON at column {error.colno}: {error.msg}"
            ) from None
        except RecursionError:
            raise RowError("broken JSON: nested too deeply") from None


def json_lines(path: Path, collector: Collector, limit: int | None = None) -> Iterator[Line]:
    """The rows of a JSON lines file, or of all `*.jsonl` and `*.jsonl.gz` of a folder in order of name; blank lines are no rows.

    Reads one line at a time, so a file may be larger than memory. At most `limit` rows. DataError when a file is empty or its gzip corrupt.
    """
    left = limit
    for file in files_of(path, {".jsonl", ".ndjson"}):
        rows = 0
        for line in _lines(file, collector):
            if left is not None and rows >= left:
                return
            yield line
            rows += 1
        if not rows:
            raise DataError(
                f"{file} is empty", collector.rows_read, advice="Check that it is the right file and that its download finished."
            )
        left = None if left is None else left - rows


def _lines(path: Path, collector: Collector) -> Iterator[Line]:
    number = 0
    with open_binary(path) as raw:
        try:
            start = raw.read(2)
            raw.seek(0)
            # UTF-16 has zero bytes around its line ends, so it cannot be cut at them before it is decoded.
            file = io.BytesIO(raw.read().decode("utf-16").encode()) if start in _UTF16 else raw
            for number, data in enumerate(file, 1):
                if data.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield Line(str(path), number, data)
        except UnicodeDecodeError as error:
            raise collector.broken(str(path), 1, f"not valid UTF-16: {error.reason}; save the file as UTF-8") from None
        except _GZIP_ERRORS as error:
            raise collector.broken(str(path), number + 1, f"the gzip file is corrupt: {error}", _GZIP_ADVICE) from error


@dataclass(frozen=True, slots=True)
class Element:
    """A member of a JSON object (with `key`) or an entry of a JSON list (without), the line where it starts, and its text from there on."""

    key: str | None
    value: object
    line: int
    start: int


def json_elements(path: Path, text: str, collector: Collector, enter: str | None = None) -> Iterator[Element]:
    """The members of the object or list that a JSON text holds, one by one; those of the list under the key `enter` in its place.

    One by one, so that a broken file tells its line and how many rows were read before it. DataError where it breaks.
    """
    line, counted = 1, 0
    try:
        for key, value, start in _walk(text, _skip(text, 0), enter):
            line, counted = line + text.count("\n", counted, start), start
            yield Element(key, value, line, start)
    except json.JSONDecodeError as error:
        reason = "broken JSON: the file ends too early" if _cut(error) else f"broken JSON at column {error.colno}: {error.msg}"
        advice = "Download or write it again: its end is missing." if _cut(error) else ""
        raise collector.broken(str(path), error.lineno, reason, advice) from None
    except RecursionError:
        raise collector.broken(str(path), line, "broken JSON: nested too deeply") from None


def _cut(error: json.JSONDecodeError) -> bool:
    # The decoder reports an unterminated string at its start; a line end inside a string has a message of its own.
    return error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")


_DECODER = json.JSONDecoder()


def _walk(text: str, at: int, enter: str | None, *, outer: bool = True) -> Generator[tuple[str | None, object, int], None, int]:
    opening = text[at : at + 1]
    if opening not in ("{", "["):
        raise json.JSONDecodeError("Expecting an object or a list", text, at)
    closing = "}" if opening == "{" else "]"
    at = _skip(text, at + 1)
    if text.startswith(closing, at):
        return _end(text, at + 1, outer)
    while True:
        key: str | None = None
        if opening == "{":
            name, at = _DECODER.raw_decode(text, at)
            if not isinstance(name, str) or not text.startswith(":", _skip(text, at)):
                raise json.JSONDecodeError("Expecting a name in quotes and ':'", text, at)
            key, at = name, _skip(text, _skip(text, at) + 1)
        if key is not None and key == enter and text.startswith("[", at):
            at = yield from _walk(text, at, None, outer=False)
        else:
            start = at
            value, at = _DECODER.raw_decode(text, at)
            yield key, value, start
        at = _skip(text, at)
        if text.startswith(closing, at):
            return _end(text, at + 1, outer)
        if not text.startswith(",", at):
            raise json.JSONDecodeError(f"Expecting ',' or '{closing}'", text, at)
        at = _skip(text, at + 1)


def _end(text: str, at: int, outer: bool) -> int:
    if outer and _skip(text, at) < len(text):
        raise json.JSONDecodeError("more text after the end; is it JSON lines?", text, _skip(text, at))
    return at


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
