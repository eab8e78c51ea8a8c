"""What counts as a token: a word or mark, or a token of a tokenizer. Knows no document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import tokenizers

from flows.errors import UserError

Span = tuple[int, int]
"""Characters [start, end) of a text."""

_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
# Texts that a tokenizer takes at once: enough for all its threads, few enough that their spans do not fill the memory.
_BATCH = 256


class TokenSpans(Protocol):
    """Port to what counts tokens."""

    def __call__(self, texts: Iterable[str], /) -> Iterator[Sequence[Span]]:
        """For each text, as they come, the characters of its tokens in order of start."""


def word_spans(text: str) -> Sequence[Span]:
    r"""Characters of each word (`\w+`) and each mark of one text."""
    return [found.span() for found in _WORD_OR_MARK.finditer(text)]


def by_words(texts: Iterable[str], /) -> Iterator[Sequence[Span]]:
    """The counter without a tokenizer: a token is a word or one mark."""
    return map(word_spans, texts)


def load_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, which neither cuts nor pads. UserError when it does not load."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for every cause
        raise UserError(f"The tokenizer {file} cannot be loaded: {error}. It should be a tokenizer.json of Hugging Face.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def by_tokenizer(tokenizer: tokenizers.Tokenizer) -> TokenSpans:
    """Counts tokens of a tokenizer, without the special ones, many texts at once."""

    def spans(texts: Iterable[str], /) -> Iterator[Sequence[Span]]:
        waiting = iter(texts)
        while batch := list(islice(waiting, _BATCH)):
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                yield encoding.offsets

    return spans
