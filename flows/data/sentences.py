"""Finds sentences. Knows no document.

Two rules: `by_marks`, a full stop before a capital, which cuts at "et al. (2019)" and "Fig. 2" too and on which the unit `paragraph` rests;
and `by_library`, Wikimedia's sentencex with its list of English abbreviations, for everything else. Marks of other scripts end sentences
in both.
"""

from __future__ import annotations

import re

import sentencex  # type: ignore[import-untyped]  # shipped without types

from flows.data.tokens import Span

_SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"')\]\u201d\u2019]*(?=\s+[^\sa-z])|[\u3002\uff01\uff1f]|\Z)", re.DOTALL)


def by_marks(text: str) -> list[Span]:
    """Sentences by their closing marks alone."""
    return [found.span() for found in _SENTENCE.finditer(text)]


def by_library(text: str) -> list[Span]:
    """Sentences that know of abbreviations, initials, decimals and quotations; without the space around them."""
    found = [(one["start_index"], one["end_index"]) for one in sentencex.get_sentence_boundaries("en", text)]
    return [stripped(text, span) for span in found if text[slice(*span)].strip()]


def stripped(text: str, span: Span) -> Span:
    """The span without space at its ends."""
    piece = text[slice(*span)]
    start = span[0] + len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())
