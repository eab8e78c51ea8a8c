"""Reads scores that people gave to answers of a run: CSV, TSV, JSON lines, a JSON list or Parquet. Knows no run and no statistics.

| column | holds |
|---|---|
| `item` | id of the question, as in the run's items |
| `contestant` | who answered: the arm, with its training seed where it has one (`raft-1000-s2`) |
| `criterion` | what was scored |
| `score` | a number on the criterion's scale |
| `sample` | which of several answers to one question, counted from 0; may be missing where there is one |
| `annotator` | who scored; may be missing. Several may score one answer |
| `probability` | chance with which this item was drawn for labelling, above 0 and at most 1; missing where it was the same for all |

Other columns are not read. A row that cannot be used is refused with its file, line and reason; nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flows.data.fields import Row, identifier, name_of, require
from flows.data.source import Collector, RowError
from flows.data.tables import table_rows
from flows.errors import BadRow, DataError

_NEEDED = ("item", "contestant", "criterion", "score")


@dataclass(frozen=True, slots=True)
class Label:
    """One person's score of one answer on one criterion, and where it was written."""

    item: str
    contestant: str
    criterion: str
    score: float
    sample: int | None
    annotator: str
    probability: float | None
    file: str
    line: int


def read_labels(path: Path) -> tuple[Label, ...]:
    """All labels of a file, in its order. DataError with file, line and reason for rows that cannot be used; UserError for no file."""
    collector = Collector(path, "error")
    found: dict[tuple[str, str, str, int | None, str], Label] = {}
    drawn: dict[str, Label] = {}
    for file, line, parse in table_rows(path, collector, partial(_check_columns, path)):
        with collector.row(file, line):
            label = _label(parse(), file, line)
            key = (label.item, label.contestant, label.criterion, label.sample, label.annotator)
            if key in found:
                who = f"by {label.annotator!r}" if label.annotator else "by no one named (name people in `annotator`)"
                raise RowError(f"this answer was scored {who} on {label.criterion!r} before, at line {found[key].line}: keep one")
            _check_probability(label, drawn.setdefault(label.item, label), next(iter(drawn.values())))
            found[key] = label
    try:
        collector.source()
    except DataError as error:
        if not error.bad_rows:
            raise
        raise refused(path, error.rows_read, error.bad_rows) from None
    return tuple(found.values())


def refused(path: Path, rows_read: int, bad: tuple[BadRow, ...]) -> DataError:
    """The error for labels that cannot be used."""
    many = f"{len(bad)} row{'' if len(bad) == 1 else 's'}"
    return DataError(f"{path}: {many} cannot be used", rows_read, bad, "Correct the rows, or take them out of the file.")


def _check_columns(path: Path, found: Sequence[str]) -> None:
    if missing := [column for column in _NEEDED if column not in found]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; columns found: {', '.join(found)}",
            advice=f"Labels have the columns {', '.join(_NEEDED)}, and sample, annotator and probability where you have them.",
        )


def _label(row: Row, file: str, line: int) -> Label:
    item, contestant, criterion = (identifier(row, name) for name in _NEEDED[:3])
    score = _number(row, "score")
    sample = None if _absent(row, "sample") else _number(row, "sample")
    if sample is not None and (sample < 0 or not sample.is_integer()):
        raise RowError(f"'sample' is {sample:g}, expected a whole number, counted from 0")
    probability = None if _absent(row, "probability") else _number(row, "probability")
    if probability is not None and not 0 < probability <= 1:
        raise RowError(f"'probability' is {probability:g}, expected a number above 0 and at most 1")
    annotator = "" if _absent(row, "annotator") else identifier(row, "annotator")
    return Label(item, contestant, criterion, score, None if sample is None else int(sample), annotator, probability, file, line)


def _check_probability(label: Label, same_item: Label, first: Label) -> None:
    if label.probability != same_item.probability:
        raise RowError(f"'probability' of item {label.item!r} is another at line {same_item.line}: an item is drawn with one probability")
    if (label.probability is None) != (first.probability is None):
        raise RowError(
            f"'probability' is {'missing' if label.probability is None else 'given'}, unlike at line {first.line}: give all or none"
        )


def _absent(row: Row, key: str) -> bool:
    value = row.get(key)
    return value is None or (isinstance(value, str) and not value.strip())


def _number(row: Row, key: str) -> float:
    """A number, which is a text in CSV."""
    value = require(row, key)
    if isinstance(value, str) and not value.strip():
        raise RowError(f"'{key}' is blank")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"'{key}' is {name_of(value)}, expected a number")
    try:
        number = float(value)
    except ValueError:
        raise RowError(f"'{key}' is {value!r}, expected a number") from None
    if not math.isfinite(number):
        raise RowError(f"'{key}' is {value!r}, expected a finite number")
    return number
