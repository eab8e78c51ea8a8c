"""Parents of passages: small pieces are searched, and a prompt shows the wider text around what was found. Knows neither of the two.

A parent is the section or the document that a passage was cut from. A prompt shows each parent once, at the place of its best passage. One
over `max_tokens` is cut to a stretch around its best passage, and around its other ones in their order as far as all of it still fits; the
rest of the room is divided between what stands before and after, to whole sentences, or to whole words where no sentence fits.

A parent is a passage with an id of its own: `<document>#s<section>` or `<document>#document`, and where it is cut, the characters that are
shown: `<document>#s3[120:2480]`.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flows.data.chunk import Piece
from flows.data.layout import lay_out
from flows.data.sentences import by_library, stripped
from flows.data.tokens import Span, TokenSpans
from flows.records import Document, Passage, Place

ParentKind = Literal["none", "section", "document"]

_SPACE = re.compile(r"\s")
# A run without a space that is longer than this is no word, but a script without spaces: it may be cut anywhere.
_LONGEST_WORD = 50


@dataclass(frozen=True, slots=True)
class Parents:
    """Parents by id, the places of passages in them, and how much of a parent is shown."""

    texts: Mapping[str, Passage]
    places: Mapping[str, Place]
    max_tokens: int
    token_spans: TokenSpans

    def shown(self, passages: Iterable[Passage]) -> tuple[Passage, ...]:
        """What a prompt shows for these passages, which are in order of rank."""
        found: dict[str, list[Span]] = {}
        for passage in passages:
            place = self.places[passage.id]
            found.setdefault(place.parent, []).append((place.start, place.start + len(passage.text)))
        return tuple(self._around(self.texts[name], spans) for name, spans in found.items())

    def _around(self, parent: Passage, spans: Sequence[Span]) -> Passage:
        (tokens,) = self.token_spans([parent.text])
        if len(tokens) <= self.max_tokens:
            return replace(parent, text=parent.text.strip())
        start, end = _grown(parent.text, _held(spans, tokens, self.max_tokens), tokens, self.max_tokens)
        return replace(parent, id=f"{parent.id}[{start}:{end}]", text=parent.text[start:end])


def parent_texts(documents: Iterable[Document], kind: ParentKind) -> Iterator[Passage]:
    """All parents, whole; none for the kind `none`."""
    for document in documents if kind != "none" else ():
        layout = lay_out(document)
        if kind == "document":
            yield Passage(_document_id(document.id), document.id, layout.text, document.title)
        else:
            for section in layout.sections:
                text = layout.text[slice(*section.span)]
                yield Passage(_section_id(document.id, section.number), document.id, text, document.title, section.heading)


def places(pieces: Iterable[Piece], kind: ParentKind) -> Iterator[Place]:
    """Where passages stand in their parents; none for the kind `none`."""
    for piece in pieces if kind != "none" else ():
        document = piece.passage.document
        if kind == "document":
            yield Place(piece.passage.id, _document_id(document), piece.start)
        else:
            yield Place(piece.passage.id, _section_id(document, piece.section), piece.start_in_section)


def _document_id(document: str) -> str:
    return f"{document}#document"


def _section_id(document: str, number: int) -> str:
    return f"{document}#s{number}"


def _held(spans: Sequence[Span], tokens: Sequence[Span], most: int) -> Span:
    """The first stretch, widened to hold the others as well, each if all of it then still fits."""
    start, end = spans[0]
    for first, last in spans[1:]:
        wider = min(start, first), max(end, last)
        if _among(wider, tokens)[1] - _among(wider, tokens)[0] <= most:
            start, end = wider
    return start, end


def _grown(text: str, span: Span, tokens: Sequence[Span], most: int) -> Span:
    first, after = _among(span, tokens)
    room = max(0, most - (after - first))
    behind = min(len(tokens) - after, room - min(first, room // 2))
    before = min(first, room - behind)
    earliest = tokens[first - before][0] if before else span[0]
    latest = tokens[after + behind - 1][1] if behind else span[1]
    sentences = by_library(text)
    starts = [start for start, _ in sentences if earliest <= start <= span[0]]
    ends = [end for _, end in sentences if span[1] <= end <= latest]
    start = starts[0] if starts else _from_a_word(text, earliest, span[0])
    end = ends[-1] if ends else _to_a_word(text, span[1], latest)
    return stripped(text, (start, end))


def _among(span: Span, tokens: Sequence[Span]) -> Span:
    """Places of the tokens in a stretch; a token that is cut by its ends counts."""
    return bisect_right(tokens, span[0], key=lambda token: token[1]), bisect_left(tokens, span[1], key=lambda token: token[0])


def _from_a_word(text: str, start: int, most: int) -> int:
    """The start, or where it is within a word, the end of that word."""
    if start == 0 or text[start - 1].isspace():
        return start
    space = _SPACE.search(text, start, min(most, start + _LONGEST_WORD))
    return space.start() if space else start


def _to_a_word(text: str, least: int, end: int) -> int:
    """The end, or where it is within a word, the start of that word."""
    if end == len(text) or text[end].isspace():
        return end
    spaces = [found.end() for found in _SPACE.finditer(text, max(least, end - _LONGEST_WORD), end)]
    return spaces[-1] if spaces else end
