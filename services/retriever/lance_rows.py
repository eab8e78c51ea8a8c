"""Passages as rows of a table of LanceDB, and filters over them. Knows no index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import and_

import pyarrow as pa
from lancedb.expr import Expr, col, lit

from services.retriever.domain import Passage, Vectors

TEXTS = ("id", "text", "document", "title", "heading", "metadata")
# Stands between the JSON pairs of a metadata column. JSON escapes it, so a pair between two of them is one pair and nothing else.
_EDGE = "\x1f"


def predicate(filters: Iterable[tuple[str, str]]) -> Expr | None:
    """What rows must fulfil to have all these values; None without filters."""
    # Expressions, never SQL text: a value cannot end its quotes.
    parts = [
        col("document") == lit(value) if key == "document" else col("metadata").contains(lit(f"{_EDGE}{_pair(key, value)}{_EDGE}"))
        for key, value in filters
    ]
    return reduce(and_, parts) if parts else None


def _pair(key: str, value: str) -> str:
    return json.dumps([key, value], ensure_ascii=False)


def to_arrow(passages: Sequence[Passage], vectors: Vectors) -> pa.RecordBatch:
    """Passages and their vectors as columns."""
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(passage, name) for passage in passages], pa.string()) for name in TEXTS if name != "metadata"
    }
    metadata = [_EDGE.join(["", *(_pair(key, value) for key, value in passage.metadata), ""]) for passage in passages]
    columns["metadata"] = pa.array(metadata, pa.string())
    numbers = pa.Array.from_buffers(pa.float32(), len(vectors) * vectors.dimensions, [None, pa.py_buffer(vectors.data)])
    columns["vector"] = pa.FixedSizeListArray.from_arrays(numbers, vectors.dimensions)
    return pa.RecordBatch.from_pydict(columns)


def to_passages(rows: pa.Table) -> Iterator[Passage]:
    """Rows as passages, in their order."""
    for row in rows.select(TEXTS).to_pylist():
        pairs = (json.loads(pair) for pair in row.pop("metadata").split(_EDGE) if pair)
        yield Passage(**row, metadata=tuple((key, value) for key, value in pairs))
