"""Answers that quote their evidence first, as RAFT's do (Zhang et al. 2024, arXiv 2403.10131, section 3). Knows neither prompts nor models.

Such an answer is the number of a passage, a sentence of it, and on a line of its own what follows from it:

    [2] "The capital of Lomira is Bakodu."
    Answer: Bakodu
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from flows.data.gold import contains, coverage
from flows.data.sentences import by_library
from flows.data.text import words

_MARK = "Answer:"
_BEGUN = re.compile(r'\s*\[\d+\] "')
_LEAST = 0.5
"""Share of the words, of sentence or evidence, that the two must have in common: as for passages that are gold."""


def quoted(answer: str, references: Iterable[str], evidence: Iterable[str], passages: Iterable[tuple[int, str]]) -> str | None:
    """`answer` after the sentence that is its evidence, out of passages by their numbers; None where no sentence or several may be.

    Of sentences that the evidence covers it is the one with most of its words among those that hold a reference, for evidence may be a
    whole paragraph. Where none holds one, it must be the only sentence.
    """
    known = [words(text) for text in evidence]
    found = [
        (number, text[start:end], covered)
        for number, text in passages
        for start, end in by_library(text)
        if (covered := max((_covered(words(text[start:end]), one) for one in known), default=0))
    ]
    meant = [words(reference) for reference in references]
    telling = [one for one in found if any(reference and contains(words(one[1]), reference) for reference in meant)]
    if not telling and len(found) != 1:
        return None
    number, sentence, _ = max(telling or found, key=lambda one: one[2])
    return f'[{number}] "{" ".join(sentence.split())}"\n{_MARK} {answer}'


def _covered(sentence: Sequence[str], evidence: Sequence[str]) -> int:
    """Words that a sentence and evidence have in common; 0 where they are too few to be the same statement."""
    if contains(tuple(sentence), tuple(evidence)):
        return len(evidence)
    share = coverage(tuple(sentence), tuple(evidence))
    return round(share * min(len(sentence), len(evidence))) if share >= _LEAST else 0


def divided(text: str) -> tuple[str, str]:
    """The quotation, and what follows from it: the whole text where nothing is quoted, nothing where it ends in the quotation."""
    before, mark, after = text.rpartition(f"\n{_MARK}")
    if mark and before.strip():
        return before.strip(), after.strip()
    return (text.strip(), "") if _BEGUN.match(text) else ("", text)
