"""What two texts have in common, as far as counting tells. Knows no score and no embedding.

Tokens and F1 follow SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1, and its evaluation script): lower case, no punctuation, no
articles, single spaces; precision and recall over the two bags of tokens.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "\u2018\u2019\u201c\u201d\u2013\u2014\u2026")
# A digit that belongs to a name (GPT-2, COVID-19, T5, v1) is no number; 2-layer and 5% hold one. A minus counts where a number may begin.
_NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z_]-)(?:(?<!\S)[-\u2212])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
# "one" is more often a pronoun.
_WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER_WORDS = {word: Decimal(value) for value, word in enumerate(_WORDS, 2)}
_YES_NO = re.compile(r"\W*(yes|no)\b(?P<stop>\W*$|\s*[,.;:!\u2013\u2014-])?", re.IGNORECASE)
_ASKS_YES_NO = re.compile(
    r"\W*(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|should|may|might|must)(?:n't)?\b", re.IGNORECASE
)
_NEGATIONS = frozenset({"not", "no", "never", "neither", "nor", "none", "cannot", "without"})
# F1 of the words that carry meaning, from which two sentences are taken to speak of the same.
_SAME_WORDS = 0.7
_NOT = re.compile(r"n['\u2019]t\b", re.IGNORECASE)
# Words that alone say nothing; sharing only these is sharing nothing.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "of in on at to for with by from and or but as is are was were be been being has have had do does did it its this that these those "
        "there their they he she we you i which who whom what when where than then so such into over under between",
    )
)
# A sentence that declines; a text abstains when each of its sentences does.
_ABSTENTIONS = (
    r"(?:this |the |that )?(?:question |it )?(?:is |was )?(?:unanswerable|not answerable)",
    r"(?:it is |it's |that is )?(?:no answer|n/?a|unknown|not (?:given|stated|mentioned|specified|provided|known))(?: (?:in|by|from) .*)?",
    r"(?:there is |there's |i have |we have )?(?:no|not enough|insufficient) (?:answer|information|evidence|context)(?: .*)?",
    r"(?:sorry,? |i'm sorry,? )?(?:but )?i (?:do not|don't) know(?: .*)?",
    r"(?:sorry,? |i'm sorry,? )?(?:but )?(?:i )?(?:cannot|can't|can not|am unable to|could not|couldn't) "
    r"(?:answer|find|determine|say|tell)(?: .*)?",
    r"(?:(?:this |the |that )?(?:question |answer )?|it )(?:cannot|can't|can not) be (?:answered|determined|found)(?: .*)?",
    r"(?:based on .*, )?(?:the |this |these |those |given |provided |retrieved )*"
    r"(?:passages?|context|text|documents?|paper|article|excerpts?) (?:do|does|did)(?: not|n't) "
    r"(?:say|state|mention|contain|provide|specify|answer|give|include|tell)(?: .*)?",
)
_ABSTENTION = re.compile("|".join(f"(?:{pattern})" for pattern in _ABSTENTIONS), re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Text:
    """A text and what is needed of it."""

    raw: str
    tokens: tuple[str, ...]
    numbers: frozenset[Decimal]
    abstains: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """Shared tokens of an answer and a reference, 0 to 1. `contains_reference`, `in_reference`: one is a run of tokens within the other."""

    equal: bool
    precision: float
    recall: float
    f1: float
    contains_reference: bool
    in_reference: bool
    only_function_words: bool
    """What they share says nothing on its own."""


def tokens(text: str) -> tuple[str, ...]:
    """SQuAD's tokens; where nothing would be left ("A", "+"), the words as they stand, in lower case."""
    lowered = unicodedata.normalize("NFKC", text).lower()
    return tuple(_ARTICLES.sub(" ", lowered.translate(_PUNCTUATION)).split()) or tuple(lowered.split())


def read(text: str, abstentions: Sequence[str]) -> Text:
    """`abstentions` are texts that mean "there is no answer", beside the phrases known here; compared without case and final full stop."""
    words = tokens(text)
    numbers = {_value(match) for match in _NUMBER.findall(text)}
    numbers |= {_NUMBER_WORDS[word] for word in words if word in _NUMBER_WORDS}
    given = {_plain(abstention) for abstention in abstentions}
    sentences = [_plain(sentence) for sentence in _SENTENCE_END.split(text.strip())]
    abstains = _plain(text) in given or all(sentence in given or _ABSTENTION.fullmatch(sentence) for sentence in sentences)
    return Text(text, words, frozenset(numbers), abstains)


def _plain(text: str) -> str:
    return text.strip().rstrip(".!").strip().lower().replace("\u2019", "'")


def overlap(answer: Text, reference: Text) -> Overlap:
    """What the two share."""
    shared = Counter(answer.tokens) & Counter(reference.tokens)
    count = shared.total()
    precision = count / len(answer.tokens) if answer.tokens else 0.0
    recall = count / len(reference.tokens) if reference.tokens else 0.0
    return Overlap(
        equal=bool(answer.tokens) and answer.tokens == reference.tokens,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if count else 0.0,
        contains_reference=_within(reference.tokens, answer.tokens),
        in_reference=_within(answer.tokens, reference.tokens),
        only_function_words=shared.keys() <= _FUNCTION_WORDS and not set(reference.tokens) <= _FUNCTION_WORDS,
    )


def with_digits(text: Text) -> Text:
    """The same with every number as one token in one form: "two" is "2", "1,200" is "1200", "3.50" is "3.5", and that is not "35"."""
    words = tokens(_NUMBER.sub(lambda match: f" {_one_form(_value(match[0]))} ", text.raw))
    return replace(text, tokens=tuple(_one_form(_NUMBER_WORDS[word]) if word in _NUMBER_WORDS else word for word in words))


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("\u2212", "-"))


def _one_form(value: Decimal) -> str:
    # Letters for point and minus, since punctuation goes.
    return format(value.normalize(), "f").replace(".", "point").replace("-", "minus")


def _within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    # "not X" does not contain the claim X.
    return any(start == 0 or whole[start - 1] not in _NEGATIONS for start in _starts(part, whole))


def _starts(part: tuple[str, ...], whole: tuple[str, ...]) -> list[int]:
    if not part:
        return []
    return [start for start in range(len(whole) - len(part) + 1) if whole[start : start + len(part)] == part]


def opposite(question: str, answer: Text, reference: Text) -> bool:
    """Yes against no; one denies the other ("not X" against "X"); much the same words, once with and once without a negation."""
    says, should = _polarity(answer, loose=True), _polarity(reference, loose=bool(_ASKS_YES_NO.match(question)))
    if says is not None and should is not None:
        return says != should
    for part, whole in ((reference.tokens, answer.tokens), (answer.tokens, reference.tokens)):
        if _starts(part, whole) and not _within(part, whole):
            return True
    (answer_negated, said), (reference_negated, asked) = _negated(answer), _negated(reference)
    shared = (Counter(said) & Counter(asked)).total()
    return answer_negated != reference_negated and 2 * shared >= _SAME_WORDS * (len(said) + len(asked)) > 0


def agrees_on_yes_no(question: str, answer: Text, reference: Text) -> bool:
    """Both say yes, or both say no."""
    says, should = _polarity(answer, loose=True), _polarity(reference, loose=bool(_ASKS_YES_NO.match(question)))
    return says is not None and says == should


def _polarity(text: Text, loose: bool) -> str | None:
    # "No effect was seen" opens with a determiner, not with an answer, unless the question asks for yes or no.
    match = _YES_NO.match(text.raw)
    return match[1].lower() if match and (loose or match["stop"] is not None) else None


def _negated(text: Text) -> tuple[bool, list[str]]:
    negations = sum(word in _NEGATIONS for word in text.tokens) + len(_NOT.findall(text.raw))
    # "works" and "does not work" speak of the same.
    return negations % 2 == 1, [word.removesuffix("s") for word in text.tokens if word not in _NEGATIONS | _FUNCTION_WORDS]
