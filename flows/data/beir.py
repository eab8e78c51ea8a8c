"""Reads a BEIR folder (https://github.com/beir-cellar/beir): what to search, what to ask, and which documents are relevant. No answers.

| file | a row holds |
|---|---|
| `corpus.jsonl` | `_id`, `text`, and `title` where there is one |
| `queries.jsonl` | `_id`, `text`; `metadata: {"cluster": ...}` where questions share something, such as the document they ask about |
| `qrels/<split>.tsv` | tab-separated under the header `query-id corpus-id score`; `score` is a whole number |

Each may be gzip, with `.gz` at the end of its name. An item is a question that the split judges; the others are listed as skipped. Scores
are kept as gains: above 0 is relevant, the more the better; 0 or below was judged and is not. A document without title and text cannot
be found and is listed as skipped; one that is relevant stays in what there is to find.

The title opens the text, with a blank between them, as BEIR's own evaluation joins the two: a document that is one passage is found by
both, and of one that is cut the first passage begins with the title.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.data.fields import as_row, identifier, optional_text, require, text
from flows.data.files import Line, decode, json_lines
from flows.data.source import BadRows, Collector, RowError, Source
from flows.errors import DataError, UserError
from flows.records import Document, Item, Relevance, Section

_HEADER = ["query-id", "corpus-id", "score"]
_SUFFIXES = ("", ".gz")
_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class BeirFiles:
    """The files of one split."""

    corpus: Path
    queries: Path
    qrels: Path


@dataclass(frozen=True, slots=True)
class _Query:
    text: str
    cluster: str
    file: str
    line: int


def beir_files(path: Path, split: str) -> BeirFiles:
    """The files to read. UserError that says what is not there."""
    if not path.exists():
        raise UserError(f"There is no folder {path}: check the path.")
    if not path.is_dir():
        raise UserError(f"{path} is a file; a BEIR data set is a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv.")
    return BeirFiles(_needed(path, "corpus.jsonl"), _needed(path, "queries.jsonl"), _qrels(path, split))


def read_beir(path: Path, *, split: str = "test", bad_rows: BadRows = "error") -> Source:
    """All documents, and the questions that `split` judges, in the order of their files. Raises DataError, UserError."""
    files = beir_files(path, split)
    collector = Collector(path, bad_rows)
    documents = _read_corpus(files.corpus, collector)
    queries = _read_queries(files.queries, collector)
    judged = _read_qrels(files.qrels, collector, documents, queries)
    for name, query in queries.items():
        if name in judged:
            relevance = tuple(Relevance(document, gain) for document, gain in judged[name].items())
            collector.add(Item(name, query.text, (), query.cluster, relevance=relevance), query.file, query.line)
        else:
            collector.skip(query.file, query.line, name, f"not judged in the split {split}")
    source = collector.source()
    if not source.items:
        advice = "Check that it is the right file and that its download finished."
        raise DataError(f"{files.qrels} judges no question", source.rows_read, source.bad_rows, advice)
    return source


def _either(path: Path) -> Path | None:
    return next((found for end in _SUFFIXES if (found := path.with_name(path.name + end)).is_file()), None)


def _needed(folder: Path, name: str) -> Path:
    found = _either(folder / name)
    if found is None:
        raise UserError(f"The folder {folder} holds no {name}, nor {name}.gz; a BEIR data set has corpus.jsonl, queries.jsonl and qrels/.")
    return found


def _qrels(path: Path, split: str) -> Path:
    folder = path / "qrels"
    found = _either(folder / f"{split}.tsv")
    if found is not None:
        return found
    names = (file.name.removesuffix(".gz") for file in sorted(folder.iterdir())) if folder.is_dir() else ()
    splits = list(dict.fromkeys(name.removesuffix(".tsv") for name in names if name.endswith(".tsv")))
    if not splits:
        raise UserError(f"The folder {path} holds no qrels/{split}.tsv, nor the judgements of any other split.")
    near = difflib.get_close_matches(split, splits, 1, 0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"The folder {path} has no split {split!r}, but: {', '.join(splits)}.{hint}")


def _read_corpus(path: Path, collector: Collector) -> dict[str, int]:
    """The line of each document, by id; the documents go to the collector."""
    lines: dict[str, int] = {}
    for line in json_lines(path, collector):
        with collector.row(line.file, line.line):
            row = line.parse()
            name = identifier(row, "_id")
            require(row, "text")
            title, body = optional_text(row, "title"), optional_text(row, "text")
            _once("document", name, lines.get(name))
            lines[name] = line.line
            first, *others = (part.strip() for part in _BLANK_LINE.split(body))
            opening = " ".join(part for part in (title, first) if part)
            if opening:
                collector.add_document(Document(name, title, (Section("", (opening, *others)),)))
            else:
                collector.skip(line.file, line.line, name, "neither title nor text")
    return lines


def _read_queries(path: Path, collector: Collector) -> dict[str, _Query]:
    found: dict[str, _Query] = {}
    for line in json_lines(path, collector):
        with collector.row(line.file, line.line):
            row = line.parse()
            name, question = identifier(row, "_id"), text(row, "text")
            metadata = as_row(row.get("metadata") or {}, "'metadata'")
            cluster = identifier(metadata, "cluster") if metadata.get("cluster") is not None else name
            _once("question", name, found[name].line if name in found else None)
            found[name] = _Query(question, cluster, line.file, line.line)
    return found


def _once(what: str, name: str, first: int | None) -> None:
    if first is not None:
        raise RowError(f"duplicate {what} id {name!r}, first seen in line {first}")


def _read_qrels(path: Path, collector: Collector, documents: Mapping[str, int], queries: Mapping[str, _Query]) -> dict[str, dict[str, int]]:
    """Gains by question and document."""
    gains: dict[str, dict[str, int]] = {}
    lines: dict[tuple[str, str], int] = {}
    rows = json_lines(path, collector)  # lines of text are lines of text: only `parse` would take them for JSON
    _check_header(next(rows), collector)
    for line in rows:
        with collector.row(line.file, line.line):
            query, document, gain = _judgement(_cells(line))
            if query not in queries:
                raise RowError(f"there is no question {query!r} in the queries")
            if document not in documents:
                raise RowError(f"there is no document {document!r} in the corpus")
            known = gains.setdefault(query, {}).setdefault(document, gain)
            first = lines.setdefault((query, document), line.line)
            if known != gain:
                raise RowError(f"{query!r} and {document!r} are judged {gain} here and {known} in line {first}")
            if first != line.line:
                collector.skip(line.file, line.line, query, "judged twice alike")
    return gains


def _cells(line: Line) -> list[str]:
    return [cell.strip() for cell in decode(line.data).strip("\r\n").split("\t")]


def _check_header(line: Line, collector: Collector) -> None:
    try:
        found = _cells(line)
    except RowError as error:
        raise collector.broken(line.file, line.line, str(error)) from None
    if [cell.lower() for cell in found] != _HEADER:
        reason = f"the header is {' '.join(found)[:80]!r}, expected {' '.join(_HEADER)!r} apart by tabs"
        advice = "Files of TREC have no header and four columns: write them in BEIR's form."
        raise collector.broken(line.file, line.line, reason, advice)


def _judgement(cells: Sequence[str]) -> tuple[str, str, int]:
    if len(cells) != len(_HEADER):
        raise RowError(f"{len(cells)} cells apart by tabs, expected {len(_HEADER)} ({', '.join(_HEADER)})")
    query, document, score = cells
    for name, value in (("query-id", query), ("corpus-id", document)):
        if not value:
            raise RowError(f"'{name}' is blank")
    try:
        return query, document, int(score)
    except ValueError:
        raise RowError(f"'score' is {score!r}, expected a whole number") from None
