"""What the page of a retrieval study is made from. Knows no service, no stage and no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.analysis.retrieval_study import StudyAnalysis


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """What is known of a condition beside its quality."""

    name: str
    retrieval: Mapping[str, Any]
    """Its settings as the spec names them: `mode`, `k`, `chunk`, `encoder`, `rerank`, ..."""
    index: str
    passages: int
    median_ms: float | None
    """Of one search, made alone; None when nothing was timed."""
    timed: int
    """Searches that were timed."""


@dataclass(frozen=True, slots=True)
class StudyReport:
    """One finished study, all of it. `conditions` stand in the order of `analysis.conditions`."""

    name: str
    created: str
    """ISO 8601, with the offset from UTC."""
    seconds: float
    """Of this run; a study that found its searches done is quick."""
    spec: Mapping[str, Any]
    """The spec as JSON, defaults filled in."""
    counts: Mapping[str, Any]
    """What was read: `rows_read`, `rows_skipped` (reason -> rows), `bad_rows`, `items`, `asked`, `documents`."""
    questions: Mapping[str, str]
    """Text by id."""
    conditions: Sequence[ConditionRow]
    left_out: Sequence[str]
    """Names of conditions that the retriever has no reranker for."""
    notes: Sequence[str]
    """What to read the figures with care for."""
    reranker: str
    """The cross-encoder, as the retriever names it; "" when none was used."""
    inputs: Mapping[str, Any]
    """Hashes of all that went in."""
    versions: Mapping[str, str]
    """Library -> version."""
    analysis: StudyAnalysis
