"""What a study asks and what there is to find: questions, documents, and passages with their relevance, for each way to cut.

Asks no service. Nothing is trained here, so every question is asked, unless the spec sets `data.test_items`: then the test questions that
a trial with this data would draw. What is relevant are passages that hold the evidence (`gold`), or, where the data judge whole documents,
documents: a document then stands at the rank of its best passage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.data.encoder import EncoderFiles, find_encoder, load_encoder_tokens
from flows.data.gold import map_gold
from flows.data.source import Source
from flows.data.split import split_items
from flows.data_spec import ChunkSpec, SourceSpec, is_folder
from flows.errors import UserError
from flows.records import Document, Item, Passage
from flows.stages.prepare import cut, merged, read_sources, reasons, unique
from flows.study_spec import LoadedStudy

MOST = 1000
"""Passages that the retriever gives for one question at most."""


@dataclass(frozen=True)
class Questions:
    """All that was read. `counts` says how much."""

    items: tuple[Item, ...]
    documents: tuple[Document, ...]
    counts: Mapping[str, Any]


@dataclass(frozen=True)
class Passages:
    """The documents cut one way. `gains` are by item: of documents for items whose source judges these, else 1 for each gold passage."""

    passages: tuple[Passage, ...]
    gains: Mapping[str, Mapping[str, int]]
    document: Mapping[str, str]
    """Document of each passage."""
    longest: tuple[int, ...]
    """Passages of each document, the most first."""
    evidence_unmapped: int

    def units(self, item: Item, passages: Iterable[str]) -> tuple[str, ...]:
        """What was found for an item, best first, as its gains name it: documents by their best passage, or the passages themselves."""
        return tuple(dict.fromkeys(self.document[passage] for passage in passages)) if item.relevance else tuple(passages)

    def wanted(self, item: Item, depth: int, window: int) -> int:
        """Passages to search so that `depth` units are found: for documents as many as surely hold them, but not more than the window."""
        if not item.relevance:
            return depth
        # All passages of the longest documents but one, and one more, are of `depth` documents whatever the order.
        sure = sum(self.longest[: depth - 1]) + 1
        return min(sure, max(window, depth), MOST)


def read_questions(loaded: LoadedStudy) -> Questions:
    """Reads every source. Raises DataError and UserError with what to change."""
    data = loaded.spec.data
    sources = list(read_sources(data, loaded.resolve))
    _check_apart(loaded.spec.data.sources, sources)
    items = unique([item for source in sources for item in source.items])
    documents = merged([document for source in sources for document in source.documents])
    if not documents:
        raise UserError("data: these sources bring no documents to retrieve from; name a folder of texts under data.corpus")
    if not any(item.evidence or item.relevance for item in items):
        raise UserError(
            "data: no question says which passage or document answers it, so there is nothing to measure against. qasper, bioasq, nq and "
            "beir say so; in a table it is the column gold"
        )
    asked = split_items(items, test_items=data.test_items, seed=data.seed).test if "test_items" in data.model_fields_set else tuple(items)
    return Questions(
        asked,
        tuple(documents),
        {
            "rows_read": sum(source.rows_read for source in sources),
            "rows_skipped": reasons([skipped.reason for source in sources for skipped in source.skipped]),
            "bad_rows": [str(row) for source in sources for row in source.bad_rows],
            "items": len(items),
            "asked": len(asked),
            "documents": len(documents),
        },
    )


def _check_apart(specs: Sequence[SourceSpec], sources: Sequence[Source]) -> None:
    """UserError when two corpora name two documents alike: ids of BEIR mean something in their own corpus only."""
    seen: dict[str, int] = {}
    for number, (spec, source) in enumerate(zip(specs, sources, strict=False)):
        for document in source.documents if spec.reader == "beir" else ():
            if seen.setdefault(document.id, number) != number:
                raise UserError(f"data.sources: two corpora hold a document with the id {document.id!r}; measure them one by one")


def encoder_files(loaded: LoadedStudy, chunking: ChunkSpec, encoder: str) -> EncoderFiles | None:
    """Files of the encoder where documents are cut by its tokens; else None. Raises UserError when they cannot be had."""
    return find_encoder(loaded.encoder(encoder), is_folder(encoder)) if chunking.count == "encoder" else None


def cut_passages(loaded: LoadedStudy, questions: Questions, chunking: ChunkSpec, encoder: str) -> Passages:
    """The documents cut this way, and what is relevant among the pieces. The encoder matters where its tokens are counted."""
    counted_by = encoder_files(loaded, chunking, encoder)
    passages = cut(questions.documents, chunking, load_encoder_tokens(counted_by) if counted_by else None)
    by_evidence = [item for item in questions.items if not item.relevance]
    gold = map_gold(by_evidence, passages)
    gains: dict[str, Mapping[str, int]] = {item.id: dict.fromkeys(gold.passages[item.id], 1) for item in by_evidence}
    gains |= {item.id: {one.document: one.gain for one in item.relevance} for item in questions.items if item.relevance}
    document = {passage.id: passage.document for passage in passages}
    longest = tuple(count for _, count in Counter(document.values()).most_common())
    return Passages(passages, gains, document, longest, len(gold.unmapped))
