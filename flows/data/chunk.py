"""Cuts documents into passages, by paragraph or by tokens with overlap. Knows neither retrieval nor questions.

- `paragraph`: a paragraph is a passage; paragraphs are never merged. One over `max_tokens` is cut at the ends of sentences into as few
  passages as greedy packing gives; a sentence over it is cut at spaces, and a word over it between tokens.
- `tokens`: windows of at most `max_tokens` over each section, cut at spaces; each window begins with the last words of the one before that
  make up at most `overlap_tokens`. A window never crosses a section.

Tokens are counted once over the whole text, so a passage that a tokenizer sees alone may differ by the odd token at its first word.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import tokenizers

from flows.errors import UserError
from flows.records import Document, Passage

Span = tuple[int, int]

_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
_UNSPACED = re.compile(r"\S+")
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"')\]\u201d\u2019]*(?=\s+[^\sa-z])|[\u3002\uff01\uff1f]|\Z)", re.DOTALL)


class TokenSpans(Protocol):
    """Port to what counts tokens."""

    def __call__(self, text: str) -> Sequence[Span]:
        """Character span [start, end) of each token, in order of start."""


def word_spans(text: str) -> Sequence[Span]:
    r"""The default without a tokenizer: a token is a word (`\w+`) or one mark."""
    return [found.span() for found in _WORD_OR_MARK.finditer(text)]


def tokenizer_spans(tokenizer: Path | tokenizers.Tokenizer) -> TokenSpans:
    """Tokens of a Hugging Face tokenizer, or the path of its tokenizer.json, without special tokens. UserError when it does not load."""
    try:
        # A copy: truncation and padding are switched off below, and the caller's tokenizer must not change.
        source = tokenizers.Tokenizer.from_file(str(tokenizer)) if isinstance(tokenizer, Path) else tokenizer
        own = tokenizers.Tokenizer.from_str(source.to_str())
    except Exception as error:  # the library raises plain Exception for every cause
        raise UserError(f"The tokenizer {tokenizer} cannot be loaded: {error}. Give the path of a tokenizer.json.") from error
    own.no_truncation()
    own.no_padding()

    def spans(text: str) -> Sequence[Span]:
        return own.encode(text, add_special_tokens=False).offsets

    return spans


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut. `overlap_tokens` belongs to the unit `tokens`."""

    unit: Literal["paragraph", "tokens"] = "paragraph"
    max_tokens: int = 200
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"chunk.max_tokens is {self.max_tokens}: set it to 1 or more.")
        if not 0 <= self.overlap_tokens < self.max_tokens:
            raise UserError(f"chunk.overlap_tokens is {self.overlap_tokens}: set it from 0 to below max_tokens ({self.max_tokens}).")
        if self.unit == "paragraph" and self.overlap_tokens:
            raise UserError("chunk.overlap_tokens belongs to unit: tokens; paragraphs do not overlap. Leave it out, or set unit: tokens.")


def chunk(documents: Iterable[Document], chunking: Chunking, token_spans: TokenSpans = word_spans) -> tuple[Passage, ...]:
    """All passages in order; their ids count from 1 in each document."""
    return tuple(passage for document in documents for passage in _passages(document, chunking, token_spans))


def _passages(document: Document, chunking: Chunking, token_spans: TokenSpans) -> Iterator[Passage]:
    number = 0
    for section in document.sections:
        texts = section.paragraphs if chunking.unit == "paragraph" else ("\n\n".join(section.paragraphs),)
        for text in texts:
            for piece in _pieces(text, chunking, token_spans):
                number += 1
                yield Passage(f"{document.id}#{number}", document.id, piece, document.title, section.heading)


def _pieces(text: str, chunking: Chunking, token_spans: TokenSpans) -> Iterator[str]:
    tokens = token_spans(text)
    if len(tokens) <= chunking.max_tokens:
        if text.strip():
            yield text.strip()
        return
    units = _sentences(text) if chunking.unit == "paragraph" else [(0, len(text))]
    atoms = [atom for unit in units for atom in _atoms(text, unit, tokens, chunking)]
    # The space before an atom counts with it: in some tokenizers blank lines are tokens.
    counts = [_count((before, end), tokens) for before, (_, end) in zip([0, *(end for _, end in atoms)], atoms, strict=False)]
    for first, after in _windows(counts, chunking.max_tokens, chunking.overlap_tokens):
        yield text[atoms[first][0] : atoms[after - 1][1]].strip()


def _sentences(text: str) -> list[Span]:
    return [found.span() for found in _SENTENCE.finditer(text)]


def _atoms(text: str, unit: Span, tokens: Sequence[Span], chunking: Chunking) -> list[Span]:
    """What is packed whole: a sentence if it fits (unit paragraph), else words, else tokens."""
    if chunking.unit == "paragraph" and _count(unit, tokens) <= chunking.max_tokens:
        return [unit]
    atoms: list[Span] = []
    for found in _UNSPACED.finditer(text, *unit):
        fits = _count(found.span(), tokens) <= chunking.max_tokens
        atoms += [found.span()] if fits else _split_word(found.span(), tokens)
    return atoms


def _count(span: Span, tokens: Sequence[Span]) -> int:
    # By their ends: byte-level tokenizers count the space before a word into its first token.
    return bisect_right(tokens, span[1], key=_end) - bisect_right(tokens, span[0], key=_end)


def _end(token: Span) -> int:
    return token[1]


def _split_word(span: Span, tokens: Sequence[Span]) -> list[Span]:
    """A word of many tokens (an address, a sentence without spaces) cut where tokens end; tokens that share a character stay together."""
    ends = sorted({end for _, end in tokens[bisect_right(tokens, span[0], key=_end) : bisect_right(tokens, span[1], key=_end)]})
    return list(pairwise([span[0], *ends[:-1], span[1]]))


def _windows(counts: Sequence[int], most: int, overlap: int) -> Iterator[Span]:
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
