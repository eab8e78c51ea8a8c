"""Answers that quote their evidence first, as RAFT's do (Zhang et al. 2024, arXiv 2403.10131, section 3). Knows neither prompts nor models.

Such an answer is the number of a passage, a sentence of it, and on a line of its own what follows from it:

    [2] "The capital of Lomira is Bakodu."
    Answer: Bakodu
"""

from __future__ import annotations

from collections.abc import Sequence

from flows.data.gold import coverage
from flows.data.sentences import by_library
from flows.data.text import words

_MARK = "Answer:"
_LEAST = 0.5
"""Share of the words, of sentence or evidence, that the two must have in common: as for passages that are gold."""


def quoted(answer: str, evidence: Sequence[str], passages: Sequence[tuple[int, str]]) -> str | None:
    """`answer` after the sentence that holds most of the evidence, out of passages by their numbers; None where no sentence does."""
    known = [words(text) for text in evidence]
    sentences = [(number, text[start:end]) for number, text in passages for start, end in by_library(text)]
    held = [max((coverage(words(sentence), one) for one in known), default=0.0) for _, sentence in sentences]
    if not held or max(held) < _LEAST:
        return None
    number, sentence = sentences[held.index(max(held))]
    return f'[{number}] "{" ".join(sentence.split())}"\n{_MARK} {answer}'


def conclusion(text: str) -> str:
    """What follows the quotation; the whole text where there is none."""
    before, mark, after = text.rpartition(f"\n{_MARK}")
    return after.strip() if mark and before.strip() else text
