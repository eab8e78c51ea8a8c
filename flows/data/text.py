"""Texts made comparable: the one normalisation that gold mapping, leakage and names share. Knows no record."""

from __future__ import annotations

import re
import unicodedata

# A character of a script without spaces is a word of its own, else a whole Chinese or Japanese sentence would be one word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> tuple[str, ...]:
    """The words of a text: NFKC, case folded, without punctuation; an apostrophe divides ("what's" -> "what", "s")."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def normalise(text: str) -> str:
    """The words joined by a space; for a text without any word, itself without space around it."""
    return " ".join(words(text)) or text.strip()
