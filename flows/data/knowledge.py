"""How well a base knows the answers to its training questions. Knows no model, no prompt and no service.

The classes are SliCK's (Gekhman et al. 2024, arXiv 2405.05904, section 3 and figure 2). P(T) is the share of right answers to a question
that is asked from memory, over several sets of worked examples and, at a temperature T above 0, over several samples with each:

| class          | P(0)                                | P(T > 0) |
|----------------|-------------------------------------|----------|
| `highly_known` | 1: the greedy answer is right with every set of examples | any |
| `maybe_known`  | between 0 and 1: with some sets     | any      |
| `weakly_known` | 0                                   | above 0: a sampled answer is right at times |
| `unknown`      | 0                                   | 0        |

The paper counts exact matches. References here are free text and models answer in sentences, so an answer is **right** when for any of the
references one of these holds, over words without case, marks and articles (a number is one word: 92.3 does not hold 3, and 1,200 is 1200):

- both have the same words;
- the words of the reference are a run within the answer, with no negation right before ("not Paris" does not say Paris). A reference of
  nothing but yes or no must begin the answer, for these words stand anywhere.

So a reference of a whole sentence is hardly ever met: what is told of such questions is how often the base says just that.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from flows.data.text import words
from flows.records import Item, KnowledgeClass, KnowledgeTag

RULE = "slick/v2"
"""Name of the rule; another rule has another name."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_MINUS = re.compile(r"(?<!\S)[-\u2212](?=\d)")
_NOT = re.compile(r"n['\u2019]t\b", re.IGNORECASE)
# A capital A amid a text is a name: hepatitis A.
_ARTICLES = re.compile(r"(?:(?<!\S)(?:a|an|the)|(?:^|(?<=[.!?]\s))(?:A|An|The))(?=\s+\w)")
# A minus is one: "-3" does not say 3.
_NEGATIONS = frozenset({"not", "no", "never", "neither", "nor", "cannot", "without", "minus"})
_YES_NO = frozenset({"yes", "no"})


@dataclass(frozen=True)
class Knowledge:
    """What the base of a family knows of the questions that the family may train on, in the order of the pool."""

    model: str
    """Name of the base in the spec."""
    tags: tuple[KnowledgeTag, ...]
    """As deep into the pool as the family's sizes needed."""
    keep: tuple[KnowledgeClass, ...]
    evaluate_on: tuple[KnowledgeClass, ...]
    answers: int
    """Answers that the tags rest on; with tokens and cost, without those that an earlier family of the trial had asked for."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None

    @cached_property
    def by_item(self) -> Mapping[str, KnowledgeTag]:
        """Tags by item."""
        return {tag.item: tag for tag in self.tags}

    def keeps(self, item: str) -> bool:
        """Whether the family may train on it. Items that were never tagged lie too deep in the pool to be needed."""
        return item in self.by_item and kept(self.by_item[item], self.keep)

    def measures(self, item: str) -> bool:
        """Whether the loss on it counts, if it is one to evaluate on."""
        return kept(self.by_item[item], self.evaluate_on)

    @property
    def counts(self) -> dict[str, int]:
        """Items of each class."""
        found = dict.fromkeys(("highly_known", "maybe_known", "weakly_known", "unknown", "unanswerable"), 0)
        for tag in self.tags:
            found[tag.known] += 1
        return found


def kept(tag: KnowledgeTag, classes: Iterable[str]) -> bool:
    """Whether an item is of one of the classes. One without an answer always is: to decline is not a fact that could be known."""
    return tag.known == "unanswerable" or tag.known in classes


def classify(greedy: Sequence[bool], sampled: Sequence[bool]) -> KnowledgeClass:
    """The class of a question by which of its answers were right: greedy ones, one a set of examples, and sampled ones of all sets.

    Sampled answers decide nothing once a greedy one is right, so they need not be there then. ValueError when they are needed and none is.
    """
    if not greedy or not (any(greedy) or sampled):
        raise ValueError("a class needs greedy answers, and sampled ones where no greedy one is right")
    if all(greedy):
        return "highly_known"
    if any(greedy):
        return "maybe_known"
    return "weakly_known" if any(sampled) else "unknown"


def tag(item: str, greedy: Sequence[bool], sampled: Sequence[bool]) -> KnowledgeTag:
    """The class with the shares that it comes from."""
    share = sum(sampled) / len(sampled) if sampled else None
    return KnowledgeTag(item, classify(greedy, sampled), sum(greedy) / len(greedy), share)


def without_answer(item: Item) -> KnowledgeTag:
    """The tag of an item whose documents hold no answer."""
    return KnowledgeTag(item.id, "unanswerable", None, None)


def is_right(answer: str | None, references: Iterable[str]) -> bool:
    """Whether an answer says what one of the references says; no answer does not."""
    if answer is None:
        return False
    said = _terms(answer)
    return any(_says(said, _terms(reference)) if _terms(reference) else answer.strip() == reference.strip() for reference in references)


def _says(said: tuple[str, ...], meant: tuple[str, ...]) -> bool:
    if said == meant:
        return True
    if _YES_NO.issuperset(meant):
        return said[: len(meant)] == meant
    starts = (start for start in range(len(said) - len(meant) + 1) if said[start : start + len(meant)] == meant)
    return any(start == 0 or said[start - 1] not in _NEGATIONS for start in starts)


@lru_cache(maxsize=4096)
def _terms(text: str) -> tuple[str, ...]:
    plain = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text))
    plain = _NOT.sub(" not", _MINUS.sub("minus ", _POINT.sub("point", plain)))
    return words(_ARTICLES.sub("", plain))
