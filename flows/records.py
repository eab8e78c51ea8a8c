"""The currency of a trial: what readers give, stages pass on, and analysis counts. Knows no file format, no service and no statistics.

Every record is a frozen dataclass; tables of them live in the store as Parquet with the field names as columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KnowledgeClass = Literal["highly_known", "maybe_known", "weakly_known", "unknown"]
"""How well a base knows the answer to a question; the rule is in `flows.data.knowledge`."""


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document under one heading: the path of headings above it, joined by " > "; "" where the source names none."""

    heading: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A retrievable source: a paper, a page, a file. `id` is unique in a corpus."""

    id: str
    title: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Text on which an answer rests, verbatim from the document `document` (its id)."""

    document: str
    text: str


@dataclass(frozen=True, slots=True)
class Relevance:
    """How well a document answers a question, as its source judged it: above 0 is relevant, the more the better; 0 or below is not."""

    document: str
    gain: int


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its references. Items of one cluster share a document and are never split between training and test."""

    id: str
    question: str
    references: tuple[str, ...]
    cluster: str
    kind: str = ""
    """The source's own kind of question: yesno, factoid, list, summary, extractive, free_form, ..."""
    evidence: tuple[Evidence, ...] = ()
    answerable: bool = True
    """False when the source says that its documents hold no answer; then `references` holds the abstention text."""
    relevance: tuple[Relevance, ...] = ()
    """Judged documents, where the source judges documents and not passages of them."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrievable piece of a document. `id` is `<document>#<ordinal>`."""

    id: str
    document: str
    text: str
    title: str = ""
    heading: str = ""
    """Headings above it, joined by " > "; "" where the source names none."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a passage stands in its parent, the wider text that prompts show instead: it begins at character `start` of that text."""

    passage: str
    parent: str
    start: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage as retrieved for an item; `rank` counts from 1. Ranks and scores of a leg are None when the leg did not return it, that of
    the reranker when it did not read the passage."""

    item: str
    passage: str
    rank: int
    score: float
    lexical_rank: int | None = None
    lexical_score: float | None = None
    dense_rank: int | None = None
    dense_score: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: what the model is shown and what it should say. `gold_shown` is None for context `none`."""

    item: str
    question: str
    passages: tuple[str, ...]
    answer: str
    gold_shown: bool | None = None


@dataclass(frozen=True, slots=True)
class KnowledgeTag:
    """What a base knows of one training item."""

    item: str
    known: KnowledgeClass | Literal["unanswerable"]
    """`unanswerable` where the documents hold no answer: there is nothing to know, and nothing was asked."""
    p_greedy: float | None
    """Share of the sets of worked examples with which the greedy answer was right; None where nothing was asked."""
    p_sampled: float | None
    """Share of the sampled answers that were right; None where a greedy one was, which settles the class without them."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """What answers: an arm, or one training seed of an arm. Contestants of the same `arm` differ only in `seed`."""

    arm: str
    """Name in the report, with the training size where the arm has one: `raft-1000`."""
    family: str
    """The arm as named in the spec: `raft`."""
    model: str
    """Name of the base model in the spec."""
    adapter: str | None = None
    size: int | None = None
    seed: int | None = None
    rag: bool = True
    shots: int = 0

    @property
    def id(self) -> str:
        """`raft-1000-s2`; the arm's own name where there is no training seed."""
        return self.arm if self.seed is None else f"{self.arm}-s{self.seed}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one contestant. `text` is None when the generator could not answer; `error` then says why."""

    contestant: str
    item: str
    sample: int
    text: str | None
    abstained: bool
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    cost_usd: float | None
    prompt_hash: str
    passages: tuple[str, ...]
    """Ids of the passages shown, in order."""
    cut: tuple[str, ...]
    """Ids of passages left out because the prompt was too long for the model."""
    cited: tuple[str, ...]
    error: str | None = None
    snapshot: str = ""
    """Name under which a provider answered; empty for engines of one's own."""
    quotation: str = ""
    """Of a contestant that was trained to quote: what it quoted. `text` is what follows from it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A named number, 0 to 1."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """One run of the judge on one answer and criterion. `score` is None when missing; `error` then says why (unparsed, refused, ...)."""

    contestant: str
    item: str
    sample: int
    criterion: str
    run: int
    score: float | None
    reply: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    error: str | None = None
    metrics: tuple[Metric, ...] = ()
    """Raw reference metrics (exact_match, token_f1, ...), where the judge computes them."""
