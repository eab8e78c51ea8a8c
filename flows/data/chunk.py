"""Cuts documents into passages. Knows neither retrieval nor questions.

| unit | a passage is |
|---|---|
| `document` | a whole document, however long |
| `section` | a section; one over `max_tokens` is cut between paragraphs, or between sentences where a paragraph is too long itself |
| `paragraph` | a paragraph, never merged with another; one over `max_tokens` is cut between sentences |
| `sentences` | `window` sentences of a section, fewer where they are over `max_tokens`; the next window begins `stride` sentences later |
| `tokens` | at most `max_tokens` of a section; the next window begins with the last words of this one, at most `overlap_tokens` |

What is cut is cut into as few passages as greedy packing gives. A sentence over `max_tokens` is cut at spaces, a word over it between
tokens. Only a document crosses the end of a section. Texts are verbatim stretches of the document, whose paragraphs are apart by blank
lines.

Tokens are counted once over what is cut; a piece that has too many when it is read alone is cut again.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, tee
from typing import Literal

from flows.data.layout import Stretch, lay_out
from flows.data.sentences import by_library, by_marks, stripped
from flows.data.tokens import Span, TokenSpans, by_words
from flows.errors import UserError
from flows.records import Document, Passage

Unit = Literal["document", "section", "paragraph", "sentences", "tokens"]

_UNSPACED = re.compile(r"\S+")

_Divide = Callable[[str], list[Span]]


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut. `overlap_tokens` belongs to the unit `tokens`, `window` and `stride` to `sentences`."""

    unit: Unit = "paragraph"
    max_tokens: int = 200
    overlap_tokens: int = 0
    window: int = 3
    stride: int = 3

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"chunk.max_tokens is {self.max_tokens}: set it to 1 or more.")
        if not 0 <= self.overlap_tokens < self.max_tokens:
            raise UserError(f"chunk.overlap_tokens is {self.overlap_tokens}: set it from 0 to below max_tokens ({self.max_tokens}).")
        if self.unit != "tokens" and self.overlap_tokens:
            raise UserError(f"chunk.overlap_tokens belongs to unit: tokens, not to {self.unit}. Leave it out, or set unit: tokens.")
        if not 1 <= self.stride <= self.window:
            raise UserError(f"chunk.stride is {self.stride}: set it from 1 to window ({self.window}), else sentences would be lost.")


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage and where it comes from: its place in the text of its document and of its section (see `layout`)."""

    passage: Passage
    section: int
    """Number of the section, from 1; 0 for a passage that is a whole document."""
    start: int
    start_in_section: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What is cut on its own: a paragraph, a section or a document. `paragraphs` are spans of `text`, for units that need them."""

    document: Document
    heading: str
    section: int
    section_start: int
    start: int
    text: str
    paragraphs: tuple[Span, ...]


def chunk(documents: Iterable[Document], chunking: Chunking, token_spans: TokenSpans = by_words) -> tuple[Passage, ...]:
    """All passages in order; their ids count from 1 in each document."""
    return tuple(piece.passage for piece in pieces(documents, chunking, token_spans))


def pieces(documents: Iterable[Document], chunking: Chunking, token_spans: TokenSpans = by_words) -> Iterator[Piece]:
    """The same, each with where it comes from."""
    parts = (part for document in documents for part in _parts(document, chunking.unit))
    document, number = None, 0
    for part, tokens in _counted(parts, token_spans if chunking.unit != "document" else None):
        number = 0 if part.document is not document else number
        document = part.document
        for start, end in _cut(part, tokens, chunking, token_spans):
            number += 1
            passage = Passage(f"{document.id}#{number}", document.id, part.text[start:end], document.title, part.heading)
            at = part.start + start
            yield Piece(passage, part.section, at, at - part.section_start)


def _counted(parts: Iterable[_Part], token_spans: TokenSpans | None) -> Iterator[tuple[_Part, Sequence[Span]]]:
    """Each part with its tokens, counted over all documents together, so that a tokenizer gets many texts at once; None counts nothing."""
    if token_spans is None:
        return ((part, ()) for part in parts)
    parts, texts = tee(parts)
    return zip(parts, token_spans(part.text for part in texts), strict=True)


def _parts(document: Document, unit: Unit) -> Iterator[_Part]:
    layout = lay_out(document)
    if unit == "document":
        whole = stripped(layout.text, (0, len(layout.text)))
        if whole[0] < whole[1]:
            yield _Part(document, "", 0, 0, whole[0], layout.text[slice(*whole)], ())
        return
    for section in layout.sections:
        for span in section.paragraphs if unit == "paragraph" else (section.span,):
            start, end = stripped(layout.text, span)
            if start < end:
                paragraphs = _paragraphs(section, layout.text, start) if unit in ("section", "sentences") else ()
                yield _Part(document, section.heading, section.number, section.span[0], start, layout.text[start:end], paragraphs)


def _paragraphs(section: Stretch, text: str, start: int) -> tuple[Span, ...]:
    """The section's paragraphs that are not blank, counted from `start`."""
    found = (stripped(text, span) for span in section.paragraphs)
    return tuple((first - start, last - start) for first, last in found if first < last)


def _cut(part: _Part, tokens: Sequence[Span], chunking: Chunking, token_spans: TokenSpans) -> Iterable[Span]:
    """Where the passages of a part are in its text."""
    text, most = part.text, chunking.max_tokens
    if chunking.unit == "document" or (chunking.unit != "sentences" and len(tokens) <= most):
        return [(0, len(text))]
    ends = _ends(tokens)
    if chunking.unit == "sentences":
        sentences = [span for paragraph in part.paragraphs for span in _inside(text, paragraph, by_library)]
        atoms = [span for sentence in sentences for span in _packed(_atoms(text, sentence, ends, most, _words), ends, most, sentence[0])]
        windows = _moving(_counts(atoms, ends, 0), most, chunking.window, chunking.stride)
        return _in_order(_fitting(text, _joined(atoms, windows), most, token_spans))
    if chunking.unit == "tokens":
        atoms = [atom for word in _words(text) for atom in _atoms(text, word, ends, most)]
        windows = _windows(_counts(atoms, ends, 0), most, chunking.overlap_tokens)
        return _in_order(_fitting(text, _joined(atoms, windows), most, token_spans))
    if chunking.unit == "paragraph":
        atoms = [atom for sentence in by_marks(text) for atom in _atoms(text, sentence, ends, most, _words)]
    else:
        atoms = [atom for paragraph in part.paragraphs for atom in _atoms(text, paragraph, ends, most, by_library, _words)]
    return _fitting(text, _packed(atoms, ends, most, 0), most, token_spans)


def _atoms(text: str, span: Span, ends: Sequence[int], most: int, *divide: _Divide) -> list[Span]:
    """What is packed whole: the stretch if it fits, else what the first of `divide` makes of it, and so on; at last its tokens."""
    if _count(span, ends) <= most:
        return [span]
    if not divide:
        return _split_word(span, ends)
    first, *finer = divide
    return [atom for part in _inside(text, span, first) for atom in _atoms(text, part, ends, most, *finer)]


def _inside(text: str, span: Span, divide: _Divide) -> list[Span]:
    return [(span[0] + start, span[0] + end) for start, end in divide(text[slice(*span)])]


def _words(text: str) -> list[Span]:
    return [found.span() for found in _UNSPACED.finditer(text)]


def _split_word(span: Span, ends: Sequence[int]) -> list[Span]:
    """A word of many tokens (an address, a sentence without spaces) cut where tokens end; tokens that share a character stay together."""
    inside = sorted(set(ends[bisect_right(ends, span[0]) : bisect_right(ends, span[1])]))
    return list(pairwise([span[0], *inside[:-1], span[1]]))


def _ends(tokens: Sequence[Span]) -> list[int]:
    # Tokens are counted by their ends: byte-level tokenizers take the space before a word into its first token.
    return [end for _, end in tokens]


def _count(span: Span, ends: Sequence[int]) -> int:
    return bisect_right(ends, span[1]) - bisect_right(ends, span[0])


def _counts(atoms: Sequence[Span], ends: Sequence[int], start: int) -> list[int]:
    # The space before an atom counts with it: in some tokenizers blank lines are tokens.
    return [_count((before, end), ends) for before, (_, end) in zip([start, *(end for _, end in atoms)], atoms, strict=False)]


def _packed(atoms: Sequence[Span], ends: Sequence[int], most: int, start: int) -> list[Span]:
    return _joined(atoms, _windows(_counts(atoms, ends, start), most, 0))


def _joined(atoms: Sequence[Span], windows: Iterable[Span]) -> list[Span]:
    return [(atoms[first][0], atoms[after - 1][1]) for first, after in windows]


def _windows(counts: Sequence[int], most: int, overlap: int) -> Iterator[Span]:
    """As many atoms a window as fit, with the last ones of the window before that make up at most `overlap`."""
    start = 0
    while start < len(counts):
        end, total = start, 0
        while end < len(counts) and (total + counts[end] <= most or end == start):
            total += counts[end]
            end += 1
        yield start, end
        if end == len(counts):
            return
        back, shared = end, 0
        # At least one new atom a window, and room for it beside the overlap: else the windows would not move on.
        while back - 1 > start and shared + counts[back - 1] <= overlap and shared + counts[back - 1] + counts[end] <= most:
            back -= 1
            shared += counts[back]
        start = back


def _moving(counts: Sequence[int], most: int, size: int, stride: int) -> Iterator[Span]:
    """`size` atoms a window, or as many as fit; the next begins `stride` later, or where this one ends if that comes first."""
    start = reached = 0
    while reached < len(counts):
        end, total = start, 0
        while end < min(start + size, len(counts)) and (total + counts[end] <= most or end == start):
            total += counts[end]
            end += 1
        if end > reached:  # else it is a part of the window before
            yield start, end
            reached = end
        start = min(start + stride, end)


def _in_order(spans: Iterable[Span]) -> Iterator[Span]:
    """Spans of overlapping windows in order: of one that was cut again, the last pieces may lie within the next window."""
    reached = 0
    for start, end in sorted(spans):
        if end > reached:
            yield start, end
            reached = end


def _fitting(text: str, spans: Sequence[Span], most: int, token_spans: TokenSpans) -> Iterator[Span]:
    """The same, but what has more tokens when it is read alone than it had in the whole is cut again."""
    for (start, end), tokens in zip(spans, token_spans(text[slice(*span)] for span in spans), strict=True):
        if len(tokens) <= most:
            yield start, end
            continue
        piece, inside = text[start:end], _ends(tokens)
        atoms = [atom for word in _words(piece) for atom in _atoms(piece, word, inside, most)]
        smaller = _packed(atoms, inside, most, 0)
        # One character may be more tokens than are allowed; it stays whole.
        finer = smaller if len(smaller) == 1 else _fitting(piece, smaller, most, token_spans)
        yield from ((start + first, start + last) for first, last in finer)
