"""Reads a user's own questions: JSON lines, a JSON list, CSV, TSV or Parquet, by the suffix of the file.

| column | holds |
|---|---|
| `question` | the question; must be there |
| `references`, `reference`, `answer` or `answers` | one or more acceptable answers; one of these must be there |
| `id` | unique name; without it an item is named by the hash of its question, which stays when rows are added |
| `cluster` | what the item shares with others, such as its document; without it `document`, or else the question itself |
| `gold` | text of the passages that hold the answer, or ids of passages |
| `document` | id of the document that `gold` comes from (for a folder of texts: the file's path in it); without it, any document |
| `kind` | the kind of question, for the tables of the report |
| `answerable` | true or false; false when the corpus holds no answer |

Several values stand in a list or, in one text, apart by ` || `; a CSV cell may also hold a JSON list. Other columns are not read. Rows
without a reference are skipped and listed, except those that are not answerable: their reference is "unanswerable".
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import polars

from flows.data.fields import Row, as_row, distinct, identifier, name_of, optional_text, text
from flows.data.files import json_elements, json_lines, read_bytes, read_text, suffix
from flows.data.natural_questions import named_by_question
from flows.data.qasper import UNANSWERABLE
from flows.data.source import BadRows, Collector, RowError, Source
from flows.errors import DataError, UserError
from flows.records import Evidence, Item

SEPARATOR = " || "

_REFERENCES = ("references", "reference", "answers", "answer")
_COLUMNS = ("question", *_REFERENCES, "id", "cluster", "gold", "document", "kind", "answerable")
_TRUE, _FALSE = {"true", "yes", "1"}, {"false", "no", "0"}

_Parse = Callable[[], Row]
_Check = Callable[[Sequence[str]], None]
_Rows = Iterator[tuple[str, int, _Parse]]
"""File, line, and what parses the row, so that a row's errors arise where they are counted."""


def read_table(path: Path, *, columns: Mapping[str, str] | None = None, bad_rows: BadRows = "error") -> Source:
    """All questions of a table, plain or gzip. `columns` maps names of the list above to those in the file. Raises DataError, UserError."""
    renamed = dict(columns or {})
    if unknown := sorted(set(renamed) - set(_COLUMNS)):
        raise UserError(f"columns names {', '.join(map(repr, unknown))}, which a table does not have; it has {', '.join(_COLUMNS)}.")
    collector = Collector(path, bad_rows)
    names: Counter[str] = Counter()
    for file, line, parse in table_rows(path, collector, partial(_check_columns, path, renamed)):
        with collector.row(file, line):
            row = parse()
            item = _item({**row, **{name: _renamed(row, column) for name, column in renamed.items()}}, names)
            if item.references:
                collector.add(item, file, line)
            else:
                collector.skip(file, line, item.id, "no reference")
    return collector.source()


def table_rows(path: Path, collector: Collector, check: _Check) -> _Rows:
    """The rows of any table, by its suffix. `check` gets the columns of formats that name them beforehand. Raises DataError, UserError."""
    kind = ".jsonl" if path.is_dir() else suffix(path)
    if kind not in _FORMATS:
        raise UserError(f"{path} has the suffix {kind or '(none)'}; a table is one of {', '.join(_FORMATS)}, or one of these with .gz.")
    return _FORMATS[kind](path, collector, check)


def _check_columns(path: Path, renamed: Mapping[str, str], found: Sequence[str]) -> None:
    """For formats whose columns are known beforehand: one error in place of one for each row."""
    question = renamed.get("question", "question")
    references = [renamed[name] for name in _REFERENCES if name in renamed] or list(_REFERENCES)
    missing = [column for column in renamed.values() if column not in found] or ([] if question in found else [question])
    if not missing and set(references).isdisjoint(found) and renamed.get("answerable", "answerable") not in found:
        missing = [" or ".join(references)]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; columns found: {', '.join(found)}",
            advice="Rename the columns in the file, or name them in the spec: columns: {question: ..., reference: ...}.",
        )


def _renamed(row: Row, column: str) -> object:
    if column not in row:
        raise RowError(f"there is no column {column!r}; columns found: {', '.join(map(str, row))}")
    return row[column]


def _item(row: Row, names: Counter[str]) -> Item:
    question = text(row, "question")
    column = next((name for name in _REFERENCES if name in row), None)
    answerable = _flag(row)
    if column is None and answerable:
        raise RowError(f"none of the columns {', '.join(_REFERENCES)}; columns found: {', '.join(map(str, row))}")
    references = _values(row, column) if column else ()
    if not answerable and not references:
        references = (UNANSWERABLE,)
    document = optional_text(row, "document")
    name, cluster = named_by_question(question, names)
    if row.get("id") not in (None, ""):
        name = identifier(row, "id")
    given = row.get("cluster")
    return Item(
        id=name,
        question=question,
        references=references,
        cluster=document or cluster if given is None or given == "" else identifier(row, "cluster"),
        kind=optional_text(row, "kind"),
        evidence=tuple(Evidence(document, passage) for passage in _values(row, "gold")),
        answerable=answerable,
    )


def _flag(row: Row) -> bool:
    value = row.get("answerable")
    if value is None or value == "":
        return True
    word = str(value).strip().lower()
    if word not in _TRUE | _FALSE:
        raise RowError(f"'answerable' is {value!r}, expected true or false")
    return word in _TRUE


def _values(row: Row, column: str) -> tuple[str, ...]:
    value = row.get(column)
    if value is None:
        return ()
    if isinstance(value, str):
        value = _cell(value)
    values = value if isinstance(value, list) else [value]
    result = []
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise RowError(f"{column!r} holds {name_of(one)}, expected text")
        result.append(str(one).strip())
    return distinct([one for one in result if one])


def _cell(value: str) -> object:
    if value.strip().startswith('["'):
        try:
            parsed: object = json.loads(value)
        except json.JSONDecodeError:
            return value.split(SEPARATOR)
        return parsed
    return value.split(SEPARATOR)


def _jsonl(path: Path, collector: Collector, _: _Check) -> _Rows:
    for line in json_lines(path, collector):
        yield line.file, line.line, line.parse


def _json(path: Path, collector: Collector, _: _Check) -> _Rows:
    for element in json_elements(path, read_text(path), collector):
        if element.key is not None:
            raise collector.broken(
                str(path), element.line, "an object, expected a list of objects", "Is it JSON lines? Then name it .jsonl."
            )
        yield str(path), element.line, partial(as_row, element.value, "the row")


def _csv(path: Path, _: Collector, check: _Check, delimiter: str = ",") -> _Rows:
    # strict: a quote that is never closed would otherwise swallow the rest of the file as one cell.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield str(path), line, partial(_fail, f"broken row: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(path, header, delimiter)
            check(header)
        else:
            yield str(path), line, partial(_record, header, cells)


def _check_header(path: Path, header: list[str], delimiter: str) -> None:
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{path}: the header names {', '.join(map(repr, repeated))} more than once", advice="Rename one of the columns.")
    other = next((mark for mark in ";\t,|" if mark != delimiter and len(header) == 1 and mark in header[0]), None)
    if other:
        raise DataError(
            f"{path}: the header is one column, {header[0]!r}, and seems to be cut by {other!r}",
            advice="Save it with commas as .csv, or with tabs as .tsv.",
        )


def _record(header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise RowError(f"{len(cells)} cells, the header has {len(header)} ({', '.join(header)})")
    return dict(zip(header, cells, strict=True))


def _fail(reason: str) -> Row:
    raise RowError(reason)


def _tsv(path: Path, collector: Collector, check: _Check) -> _Rows:
    return _csv(path, collector, check, "\t")


def _parquet(path: Path, collector: Collector, check: _Check) -> _Rows:
    try:
        frame = polars.read_parquet(io.BytesIO(read_bytes(path)))
    except polars.exceptions.PolarsError as error:
        raise collector.broken(str(path), 1, f"not a Parquet file: {error}", "Write it again, or check its download.") from error
    check(frame.columns)
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        yield str(path), number, partial(as_row, row, "the row")


_FORMATS: Mapping[str, Callable[[Path, Collector, _Check], _Rows]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
