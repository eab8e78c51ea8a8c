"""Values out of parsed rows, checked. Each function raises RowError in words that name the field, what it holds and what it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flows.data.source import RowError

Row = Mapping[str, object]

_NAMES = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}


def name_of(value: object) -> str:
    """The type of a JSON value in plain words."""
    return _NAMES.get(type(value), type(value).__name__)


def as_row(value: object, what: str) -> Row:
    """`value` as an object."""
    if not isinstance(value, dict):
        raise RowError(f"{what} is {name_of(value)}, expected an object")
    return value


def require(row: Row, key: str) -> object:
    """The value of a field that must be there."""
    if key not in row:
        raise RowError(f"'{key}' is missing; fields found: {', '.join(map(str, row)) or 'none'}")
    return row[key]


def text(row: Row, key: str) -> str:
    """A text that must be there and not blank, without space around it."""
    value = require(row, key)
    if not isinstance(value, str):
        raise RowError(f"'{key}' is {name_of(value)}, expected text")
    if not value.strip():
        raise RowError(f"'{key}' is blank")
    return value.strip()


def optional_text(row: Row, key: str) -> str:
    """A text without space around it; "" when missing or null."""
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"'{key}' is {name_of(value)}, expected text")
    return value.strip()


def identifier(row: Row, key: str) -> str:
    """An id, which may be a text or a whole number in the file."""
    value = require(row, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(row, key)


def integer(row: Row, key: str) -> int:
    """A whole number that must be there."""
    value = require(row, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowError(f"'{key}' is {name_of(value)}, expected a whole number")
    return value


def objects(row: Row, key: str) -> Sequence[Row]:
    """A list of objects; empty when missing or null."""
    return [as_row(value, f"entry {n} of '{key}'") for n, value in enumerate(_list(row, key), 1)]


def texts(row: Row, key: str) -> Sequence[str]:
    """A list of texts without space around them, blank ones left out; empty when missing or null."""
    values = _list(row, key)
    for n, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise RowError(f"entry {n} of '{key}' is {name_of(value)}, expected text")
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def _list(row: Row, key: str) -> Sequence[object]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(f"'{key}' is {name_of(value)}, expected a list")
    return value


def distinct(values: Sequence[str]) -> tuple[str, ...]:
    """The values in order, each once."""
    return tuple(dict.fromkeys(values))
