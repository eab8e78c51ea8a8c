"""Reads BioASQ task b (http://participants-area.bioasq.org): one JSON object with a list `questions`.

References, by the option `answers`:
- `exact` (default): the exact answer where there is one, else the ideal answers. Summary questions have ideal answers only.
- `ideal`: the ideal answers where there are some, else the exact answer.
- `both`: the exact answers, then the ideal ones.

An exact answer becomes references so: yesno "yes" or "no"; factoid each synonym of each entry; list all entries joined by "; ", the first
reference from the first synonym of each entry, the next from the second ones (the last where an entry has fewer), and so on.

Questions that share a document are of one cluster, directly or over other questions; the cluster is named by the smallest URL in it.
Abstracts are not in the file: each document is put together from the distinct texts of its snippets in order of appearance, one section a
`beginSection`. Test files (id, type, body only) give no items; each question is listed as skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from flows.data.fields import Row, as_row, distinct, identifier, name_of, objects, optional_text, text, texts
from flows.data.files import Element, files_of, json_elements, read_text
from flows.data.source import BadRows, Collector, RowError, Source
from flows.errors import DataError
from flows.records import Document, Evidence, Item, Section

Answers = Literal["exact", "ideal", "both"]

_KINDS = ("yesno", "factoid", "list", "summary")


def read_bioasq(path: Path, *, answers: Answers = "exact", bad_rows: BadRows = "error") -> Source:
    """All questions of a BioASQ task b file, plain or gzip, and the documents that their snippets name. Raises DataError.

    `path` may be a folder of such files (a training file and golden test batches): read together, as their documents and clusters overlap.
    """
    collector = Collector(path, bad_rows)
    items: list[Item] = []
    snippets: dict[str, dict[tuple[str, str], None]] = {}
    documents: dict[str, tuple[str, ...]] = {}
    for file, element in _elements(path, collector):
        with collector.row(file, element.line):
            item, named, places = _question(element, answers)
            if item.references:
                collector.add(item, file, element.line)
                items.append(item)
            else:
                collector.skip(file, element.line, item.id, "no answer in the file (a test file holds questions only)")
            documents[item.id] = named
            for url, place in places:
                snippets.setdefault(url, {})[place] = None
    for document, parts in snippets.items():
        collector.add_document(_document(document, tuple(parts)))
    source = collector.source()
    clusters = _clusters({item.id: documents[item.id] for item in items})
    return replace(source, items=tuple(replace(item, cluster=clusters[item.id]) for item in source.items))


def _elements(path: Path, collector: Collector) -> Iterator[tuple[str, Element]]:
    """The entries of `questions`, file by file."""
    for file in files_of(path, {".json"}):
        found: list[str] = []
        before = collector.rows_read
        for element in json_elements(file, read_text(file), collector, enter="questions"):
            if element.key is None:
                yield str(file), element
            else:
                found.append(element.key)
        if collector.rows_read == before:
            raise DataError(
                f"{file} holds no questions; members found: {', '.join(found) or 'none'}",
                collector.rows_read,
                advice='A BioASQ task b file is an object with a list "questions" that is not empty.',
            )


def _question(element: Element, answers: Answers) -> tuple[Item, tuple[str, ...], list[tuple[str, tuple[str, str]]]]:
    """The item, yet without its cluster; the documents that it names; its snippets as (document, (section, text))."""
    row = as_row(element.value, "the question")
    kind = text(row, "type")
    if kind not in _KINDS:
        raise RowError(f"'type' is {kind!r}, expected one of {', '.join(_KINDS)}")
    exact, ideal = _exact(row, kind), _ideal(row)
    references = {"exact": exact or ideal, "ideal": ideal or exact, "both": exact + ideal}[answers]
    places = [
        (text(snippet, "document"), (optional_text(snippet, "beginSection"), text(snippet, "text")))
        for snippet in objects(row, "snippets")
        if optional_text(snippet, "text")
    ]
    item = Item(
        id=identifier(row, "id"),
        question=text(row, "body"),
        references=distinct(references),
        cluster="",
        kind=kind,
        evidence=tuple(dict.fromkeys(Evidence(url, snippet) for url, (_, snippet) in places)),
    )
    return item, distinct([*texts(row, "documents"), *(url for url, _ in places)]), places


def _ideal(row: Row) -> tuple[str, ...]:
    value = row.get("ideal_answer")
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    return tuple(texts(row, "ideal_answer"))


def _exact(row: Row, kind: str) -> tuple[str, ...]:
    if kind == "summary":
        return ()
    entries = _entries(row.get("exact_answer"))
    if kind == "yesno":
        replies = distinct([reply.lower().rstrip(".") for entry in entries for reply in entry])
        if not set(replies) <= {"yes", "no"}:
            raise RowError(f"'exact_answer' of a yesno question is {', '.join(map(repr, replies))}, expected 'yes' or 'no'")
        return replies
    if kind == "factoid":
        return tuple(synonym for entry in entries for synonym in entry)
    variants = max((len(entry) for entry in entries), default=0)
    return tuple("; ".join(entry[min(n, len(entry) - 1)] for entry in entries) for n in range(variants))


def _entries(value: object) -> list[list[str]]:
    """Entries with their synonyms, out of a text, a list of texts or a list of lists of texts; blank ones are left out."""
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"'exact_answer' is {name_of(value)}, expected text or a list")
    entries = []
    for n, entry in enumerate(value, 1):
        synonyms = [entry] if isinstance(entry, str) else entry
        if not isinstance(synonyms, list) or not all(isinstance(synonym, str) for synonym in synonyms):
            raise RowError(f"entry {n} of 'exact_answer' is {name_of(entry)}, expected text or a list of texts")
        entries.append([synonym.strip() for synonym in synonyms if synonym.strip()])
    return [entry for entry in entries if entry]


def _document(url: str, places: Sequence[tuple[str, str]]) -> Document:
    sections: dict[str, list[str]] = {}
    for section, snippet in places:
        sections.setdefault(section, []).append(snippet)
    # Snippets from the title may be parts of it; the longest is the best known title.
    title = max(sections.get("title", [""]), key=len)
    return Document(url, title, tuple(Section(heading, tuple(paragraphs)) for heading, paragraphs in sections.items()))


def _clusters(documents: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Connected components of questions over shared documents (union-find); a question without documents is alone."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for named in documents.values():
        for other in named[1:]:
            first, second = sorted((root(named[0]), root(other)))
            parent[second] = first
    return {item: root(named[0]) if named else f"question:{item}" for item, named in documents.items()}
