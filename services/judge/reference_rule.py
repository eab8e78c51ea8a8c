"""Rule reference/v1: from what an answer shares with a reference to 1-5. Knows no text and no embedding.

Each score is the first line, from the top, whose condition holds. P, R: precision and recall of tokens, 0 where only function words are
shared; numbers in one form ("two", "2"). S: cosine of the embeddings, used only where answer and reference have 4 tokens or more each.
"in": as a run of tokens, not behind a negation. "bare": nothing but "yes" or "no".

=====  ==========================================================  ==========================================================
score  accuracy                                                    completeness
=====  ==========================================================  ==========================================================
5      both abstain                                                both abstain
1      one abstains and the other does not                         the same
1      nothing was answered                                        the same
1      both hold numbers and share none                            the same
1      yes against no; "not X" against "X"; much the same words,   the same
       once negated
5      equal; reference in answer and P >= 0.2; answer in          equal; reference in answer; R >= 0.9; same yes or no and
       reference and R >= 0.2; same yes or no and one is bare      the reference is bare
4      reference in answer; P >= 0.75; S >= 0.85                   R >= 0.7; S >= 0.85
3      P >= 0.5; S >= 0.7; same yes or no                          R >= 0.45; S >= 0.7; same yes or no
2      P >= 0.25; S >= 0.55                                        R >= 0.2; S >= 0.55
1      otherwise                                                   otherwise
=====  ==========================================================  ==========================================================

Then caps. Accuracy: 3 when numbers are shared, but each side holds one that the other lacks. Completeness: 3 when some numbers of the
reference are missing, 2 when all are.

The score of an answer is the highest over its references. More overlap or similarity never lowers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

NAME = "reference/v1"
ENCODER = "all-MiniLM-L6-v2"
"""The sentence encoder that the similarities of this version come from."""
LOWEST, HIGHEST = 1, 5
SHORTEST_FOR_SIMILARITY = 4

_EVIDENCE = 0.2
_ACCURACY = ((4, 0.75, 0.85), (3, 0.5, 0.7), (2, 0.25, 0.55))
_COMPLETENESS = ((5, 0.9, 2.0), (4, 0.7, 0.85), (3, 0.45, 0.7), (2, 0.2, 0.55))


class Numbers(Enum):
    """How the numbers of an answer stand to those of a reference."""

    NONE_ASKED = "the reference holds none"
    ALL = "all of the reference's are in the answer"
    SOME_MISSING = "some are missing, and the answer has no others"
    MIXED = "some are missing, and the answer has others"
    ALL_MISSING = "the answer has no numbers"
    DIFFERENT = "both have numbers and share none"


class YesNo(Enum):
    """How the yes or no of an answer stands to that of a reference."""

    NONE = "not both have one"
    SAME = "the same"
    SAME_AS_BARE_REFERENCE = "the same, and the reference says nothing else"
    SAME_BARE_ANSWER = "the same, and the answer says nothing else"


@dataclass(frozen=True, slots=True)
class Signals:
    """What the rule looks at, of an answer and one reference. `similarity` is None where it does not count."""

    answered: bool
    abstains: bool
    should_abstain: bool
    opposite: bool
    numbers: Numbers
    yes_no: YesNo
    equal: bool
    contains_reference: bool
    in_reference: bool
    precision: float
    recall: float
    similarity: float | None


def accuracy(signals: Signals) -> int:
    """Whether what was said is right."""
    fixed = _fixed(signals)
    if fixed is not None:
        return fixed
    bare = signals.yes_no in (YesNo.SAME_AS_BARE_REFERENCE, YesNo.SAME_BARE_ANSWER)
    short = signals.contains_reference and signals.precision >= _EVIDENCE
    quoted = signals.in_reference and signals.recall >= _EVIDENCE
    if signals.equal or bare or short or quoted:
        level = HIGHEST
    else:
        level = _level(signals.precision, signals.similarity, _ACCURACY)
        level = max(level, 4 if signals.contains_reference else LOWEST, LOWEST if signals.yes_no is YesNo.NONE else 3)
    return min(level, 3) if signals.numbers is Numbers.MIXED else level


def completeness(signals: Signals) -> int:
    """Whether all that the reference says was said."""
    fixed = _fixed(signals)
    if fixed is not None:
        return fixed
    if signals.equal or signals.contains_reference or signals.yes_no is YesNo.SAME_AS_BARE_REFERENCE:
        level = HIGHEST
    else:
        level = _level(signals.recall, signals.similarity, _COMPLETENESS)
        level = max(level, LOWEST if signals.yes_no is YesNo.NONE else 3)
    if signals.numbers in (Numbers.SOME_MISSING, Numbers.MIXED):
        return min(level, 3)
    return min(level, 2) if signals.numbers is Numbers.ALL_MISSING else level


def _fixed(signals: Signals) -> int | None:
    if signals.abstains or signals.should_abstain:
        return HIGHEST if signals.abstains and signals.should_abstain else LOWEST
    wrong = not signals.answered or signals.opposite or signals.numbers is Numbers.DIFFERENT
    return LOWEST if wrong else None


def _level(share: float, similarity: float | None, levels: tuple[tuple[int, float, float], ...]) -> int:
    for score, least_share, least_similarity in levels:
        if share >= least_share or (similarity is not None and similarity >= least_similarity):
            return score
    return LOWEST
