"""Reads Natural Questions (https://ai.google.com/research/NaturalQuestions): original and simplified JSON lines, and NQ-open.

Original rows carry `document_tokens` with `html_token` flags, simplified ones `document_text`, whose tokens are `document_text.split("
")` and whose HTML tokens are those in angle brackets; each row is read by what it carries. Spans are [start, end) over tokens, -1 means
none.

An answer counts when at least 2 annotators gave one, or the only annotator did (training rows); short spans and yes/no count together, as
in the official evaluation. References: each annotator's short spans joined by ", " or "yes"/"no", the most frequent first; where there
are none and `long_answers` is set, the long answers. Texts are the tokens joined by a space, without HTML tokens.

Evidence is the long answer and, for each short span, the smallest candidate around it. A page becomes a document: its top-level long answer
candidates are the paragraphs, under the path of headings before them; a row without candidates is cut at its <P> tokens. Its id is the
page's name with its revision; the cluster is the name alone.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from flows.data.fields import Row, distinct, identifier, integer, name_of, objects, optional_text, require, text, texts
from flows.data.files import json_lines
from flows.data.headings import Outline, heading_path
from flows.data.source import BadRows, Collector, RowError, Source
from flows.data.text import normalise
from flows.records import Document, Evidence, Item, Section

_HTML = re.compile(r"</?[A-Za-z][^<>]*>")
_HEADING = re.compile(r"<H[1-6][^<>]*>", re.IGNORECASE)
_HEADING_END = re.compile(r"</H[1-6]>", re.IGNORECASE)

Span = tuple[int, int]


def read_nq(path: Path, *, long_answers: bool = False, limit: int | None = None, bad_rows: BadRows = "error") -> Source:
    """Questions and pages of original or simplified Natural Questions; a file or a folder of its shards, plain or gzip.

    `limit` reads only the first rows: the full sets are tens of gigabytes. Raises DataError.
    """
    collector = Collector(path, bad_rows)
    for line in json_lines(path, collector, limit):
        with collector.row(line.file, line.line):
            row = line.parse()
            page = _page(row)
            item = _item(row, page, long_answers)
            if item.references:
                collector.add(item, line.file, line.line)
            else:
                collector.skip(line.file, line.line, item.id, "too few annotators gave an answer of the kinds asked for")
            collector.add_document(page.document)
    return collector.source()


def read_nq_open(path: Path, *, limit: int | None = None, bad_rows: BadRows = "error") -> Source:
    """Questions of NQ-open, `{"question", "answer": [...]}` a line, without ids: a question's hash names it. Raises DataError."""
    collector = Collector(path, bad_rows)
    names: Counter[str] = Counter()
    for line in json_lines(path, collector, limit):
        with collector.row(line.file, line.line):
            row = line.parse()
            question = text(row, "question")
            answers = row.get("answer")
            references = [answers.strip()] if isinstance(answers, str) else texts(row, "answer")
            name, cluster = named_by_question(question, names)
            if references and references[0]:
                collector.add(Item(name, question, distinct(references), cluster, "short"), line.file, line.line)
            else:
                collector.skip(line.file, line.line, name, "no answer (a test file holds questions only)")
    return collector.source()


def named_by_question(question: str, names: Counter[str]) -> tuple[str, str]:
    """Id and cluster of a question without an id, which stay when rows are added; one that comes again gets `-2` in the same cluster."""
    cluster = "q-" + hashlib.sha256(normalise(question).encode()).hexdigest()[:12]
    names[cluster] += 1
    return (cluster if names[cluster] == 1 else f"{cluster}-{names[cluster]}"), cluster


@dataclass(frozen=True, slots=True)
class _Page:
    tokens: Sequence[str]
    is_html: Sequence[bool]
    candidates: Sequence[Span]
    document: Document
    name: str

    def text(self, span: Span) -> str:
        start, end = span
        if not 0 <= start < end <= len(self.tokens):
            raise RowError(f"span [{start}, {end}) lies outside the {len(self.tokens)} tokens of the page")
        return _plain(self.tokens, self.is_html, span)


def _plain(tokens: Sequence[str], is_html: Sequence[bool], span: Span) -> str:
    return " ".join(tokens[n] for n in range(*span) if not is_html[n] and tokens[n])


def _page(row: Row) -> _Page:
    tokens, is_html = _tokens(row)
    candidates = [(_span(one), one.get("top_level", True)) for one in objects(row, "long_answer_candidates")]
    spans = [span for span, _ in candidates if span]
    for start, end in spans:
        if not 0 <= start < end <= len(tokens):
            raise RowError(f"long answer candidate [{start}, {end}) lies outside the {len(tokens)} tokens of the page")
    top = [span for span, top_level in candidates if span and top_level] or _paragraphs(tokens, is_html)
    name, revision = _name(row)
    headings = _headings(tokens, is_html)
    title = optional_text(row, "document_title") or next((path[-1] for _, path in headings), "") or name
    sections: list[Section] = []
    for span in sorted(top):
        heading = heading_path(next((path for at, path in reversed(headings) if at < span[0]), ()), title)
        paragraph = _plain(tokens, is_html, span)
        if not paragraph:
            continue
        if sections and sections[-1].heading == heading:
            paragraph_before = sections.pop().paragraphs
            sections.append(Section(heading, (*paragraph_before, paragraph)))
        else:
            sections.append(Section(heading, (paragraph,)))
    return _Page(tokens, is_html, spans or top, Document(revision, title, tuple(sections)), name)


def _paragraphs(tokens: Sequence[str], is_html: Sequence[bool]) -> list[Span]:
    """The stretches between <P> tokens, for rows without candidates."""
    cuts = [n for n, token in enumerate(tokens) if is_html[n] and token.upper() == "<P>"]
    return list(pairwise(sorted({0, *cuts, len(tokens)})))


def _tokens(row: Row) -> tuple[Sequence[str], Sequence[bool]]:
    if row.get("document_tokens"):
        pairs = []
        for token in objects(row, "document_tokens"):
            word, flag = require(token, "token"), require(token, "html_token")
            if not isinstance(word, str) or not isinstance(flag, bool):
                raise RowError("an entry of 'document_tokens' lacks a text 'token' or a true/false 'html_token'")
            pairs.append((word, flag))
        return [word for word, _ in pairs], [flag for _, flag in pairs]
    value = row.get("document_text")
    if not isinstance(value, str) or not value:
        raise RowError(f"neither 'document_tokens' nor a text 'document_text'; fields found: {', '.join(row)}")
    tokens = value.split(" ")  # not split(): spans count the empty tokens too
    return tokens, [_HTML.fullmatch(token) is not None for token in tokens]


def _name(row: Row) -> tuple[str, str]:
    """Name of the page, and name with revision. Simplified rows have `&amp;` in their URLs. Without a URL the page is the row's own."""
    url = html.unescape(optional_text(row, "document_url"))
    query = parse_qs(urlsplit(url).query)
    if "title" in query:
        name = query["title"][0]
        return name, f"{name}@{query['oldid'][0]}" if "oldid" in query else name
    name = url or f"page-of-{identifier(row, 'example_id')}"
    return name, name


def _headings(tokens: Sequence[str], is_html: Sequence[bool]) -> list[tuple[int, tuple[str, ...]]]:
    """Where each heading begins, and the path of headings down to it."""
    outline = Outline()
    headings: list[tuple[int, tuple[str, ...]]] = []
    start: int | None = None
    for n, token in enumerate(tokens):
        if is_html[n] and _HEADING.fullmatch(token):
            start = n
        elif is_html[n] and start is not None and _HEADING_END.fullmatch(token):
            name = _plain(tokens, is_html, (start, n)).removesuffix("( edit )").strip()  # a link of Wikipedia
            headings.append((start, outline.enter(name, int(tokens[start][2]))))
            start = None
    return headings


def _span(row: Row) -> Span | None:
    start, end = integer(row, "start_token"), integer(row, "end_token")
    return None if start == -1 or end == -1 else (start, end)


def _item(row: Row, page: _Page, long_answers: bool) -> Item:
    annotations = objects(row, "annotations")
    if not annotations:
        raise RowError("'annotations' is empty or missing (the official test set has none and cannot be used)")
    needed = 1 if len(annotations) == 1 else 2
    shorts = [[span for span in map(_span, objects(one, "short_answers")) if span] for one in annotations]
    replies = [_reply(one, spans, page) for one, spans in zip(annotations, shorts, strict=True)]
    longs = [span for span in map(_long, annotations) if span]
    evidence: list[str] = []
    references: Sequence[str] = ()
    kind = ""
    if sum(reply != "" for reply, _ in replies) >= needed:
        ranked = Counter(reply for reply in replies if reply[0]).most_common()
        references, kind = [reply for (reply, _), _ in ranked], ranked[0][0][1]
    if len(longs) >= needed:
        evidence += [page.text(span) for span, _ in Counter(longs).most_common()]
        if not references and long_answers:
            references, kind = [one for one in evidence if one], "long"
    if references:
        evidence += [page.text(_around(span, page)) for spans in shorts for span in spans]
    return Item(
        id=identifier(row, "example_id"),
        question=text(row, "question_text"),
        references=distinct(references),
        cluster=page.name,
        kind=kind,
        evidence=tuple(Evidence(page.document.id, one) for one in distinct(evidence) if one),
    )


def _long(annotation: Row) -> Span | None:
    value = require(annotation, "long_answer")
    if isinstance(value, list):  # some exports wrap the one long answer in a list
        value = value[0] if value else {"start_token": -1, "end_token": -1}
    if not isinstance(value, dict):
        raise RowError(f"'long_answer' is {name_of(value)}, expected an object")
    return _span(value)


def _reply(annotation: Row, spans: Sequence[Span], page: _Page) -> tuple[str, str]:
    """One annotator's reference and its kind; ("", "") for none."""
    short = ", ".join(distinct([page.text(span) for span in spans]))
    if short:
        return short, "short"
    yes_no = (optional_text(annotation, "yes_no_answer") or "NONE").lower()
    if yes_no not in ("yes", "no", "none"):
        raise RowError(f"'yes_no_answer' is {yes_no!r}, expected YES, NO or NONE")
    return ("", "") if yes_no == "none" else (yes_no, "yesno")


def _around(span: Span, page: _Page) -> Span:
    holding = [one for one in page.candidates if one[0] <= span[0] and span[1] <= one[1]]
    return min(holding, key=lambda one: one[1] - one[0], default=span)
