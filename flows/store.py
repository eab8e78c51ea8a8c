"""Content-addressed artifacts over fsspec: what a stage made, under the hash of all that went in. Knows no stage.

An artifact is a folder `<kind>/<key>/`; its `inputs.json` is written last, so a folder without it is unfinished work and counts as absent.
Rows (`Rows`) are results that are worth keeping one by one, such as a paid judgement: small segments, each written whole.
"""

from __future__ import annotations

import hashlib
import json
import types
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

Record = TypeVar("Record")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class Store:
    """Artifacts under one root, a folder or any URL that fsspec opens."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there and finished."""
        return bool(self._fs.exists(self._path(kind, key, "inputs.json")))

    def finish(self, kind: str, key: str, inputs: Any) -> None:
        """Marks an artifact as finished; `inputs` says, for people, what it was made from."""
        self.write_json(kind, key, "inputs.json", inputs)

    def write_json(self, kind: str, key: str, name: str, value: Any) -> None:
        """Writes a JSON file of an artifact."""
        self._write(self._path(kind, key, name), json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False).encode())

    def read_json(self, kind: str, key: str, name: str) -> Any:
        """Reads a JSON file of an artifact. Raises FileNotFoundError."""
        return json.loads(self._fs.cat_file(self._path(kind, key, name)))

    def write_records(self, kind: str, key: str, name: str, record: type, records: Iterable[Any]) -> None:
        """Writes a table of dataclass records as Parquet."""
        sink = pa.BufferOutputStream()
        pq.write_table(to_table(record, records), sink)
        self._write(self._path(kind, key, name), sink.getvalue().to_pybytes())

    def read_records(self, kind: str, key: str, name: str, record: type[Record]) -> tuple[Record, ...]:
        """Reads a table of dataclass records. Raises FileNotFoundError."""
        table = pq.read_table(pa.BufferReader(self._fs.cat_file(self._path(kind, key, name))))
        return TypeAdapter(tuple[record, ...]).validate_python(table.to_pylist())  # type: ignore[valid-type]

    def write_lines(self, kind: str, key: str, name: str, rows: Iterable[Any]) -> str:
        """Writes JSON lines and returns where they are, as others can read it."""
        path = self._path(kind, key, name)
        self._write(path, "".join(canonical(row) + "\n" for row in rows).encode())
        return str(self._fs.unstrip_protocol(path)).removeprefix("file://")

    def segments(self, kind: str, group: str) -> Iterator[bytes]:
        """All segments of a group of rows."""
        folder = self._path(kind, group)
        if self._fs.exists(folder):
            for path in sorted(self._fs.ls(folder, detail=False)):
                if str(path).endswith(".jsonl"):
                    yield self._fs.cat_file(path)

    def add_segment(self, kind: str, group: str, data: bytes) -> None:
        """Adds a segment to a group of rows."""
        self._write(self._path(kind, group, f"{uuid.uuid4().hex}.jsonl"), data)

    def _path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def _write(self, path: str, data: bytes) -> None:
        # Written beside and moved: a killed process leaves no half file under the right name.
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        try:
            self._fs.pipe_file(partial, data)
            self._fs.mv(partial, path)
        except OSError:
            if self._fs.exists(partial):
                self._fs.rm_file(partial)
            raise


class Rows:
    """Results kept one by one under the hash of what each was made from. Rows are on disk after `flush` only."""

    def __init__(self, store: Store, kind: str, group: str, batch: int = 64) -> None:
        self._store, self._kind, self._group, self._batch = store, kind, group, batch
        self._rows: dict[str, Any] = {}
        self._new: list[str] = []
        for segment in store.segments(kind, group):
            for line in segment.splitlines():
                entry = json.loads(line)
                self._rows[entry["key"]] = entry["row"]

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Any:
        """The row. Raises KeyError when there is none."""
        return self._rows[key]

    def add(self, key: str, row: Any) -> None:
        """Adds a row; every `batch` rows go to disk together."""
        self._rows[key] = row
        self._new.append(key)
        if len(self._new) >= self._batch:
            self.flush()

    def flush(self) -> None:
        """Puts rows added since the last flush on disk."""
        if self._new:
            lines = [canonical({"key": key, "row": self._rows[key]}) for key in self._new]
            self._store.add_segment(self._kind, self._group, ("\n".join(lines) + "\n").encode())
            self._new = []


def to_table(record: type, records: Iterable[Any]) -> pa.Table:
    """A table with the record's fields as columns, typed from the record so that an empty or all-missing column keeps its type."""
    return pa.Table.from_pylist([asdict(row) for row in records], schema=_schema(record))


def _schema(record: type) -> pa.Schema:
    hints = get_type_hints(record)
    return pa.schema([(field.name, _arrow(hints[field.name])) for field in fields(record)])


def _arrow(hint: Any) -> pa.DataType:
    simple: Mapping[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in simple:
        return simple[hint]
    arguments: Sequence[Any] = get_args(hint)
    if get_origin(hint) is Literal:
        return pa.string()
    if get_origin(hint) in (Union, types.UnionType):
        return _arrow(next(argument for argument in arguments if argument is not type(None)))
    if get_origin(hint) is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return pa.list_(_arrow(arguments[0]))
        return pa.struct([(str(place), _arrow(argument)) for place, argument in enumerate(arguments)])
    if is_dataclass(hint) and isinstance(hint, type):
        return pa.struct(list(_schema(hint)))
    raise TypeError(f"no column type for {hint}")
