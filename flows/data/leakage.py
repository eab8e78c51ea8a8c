"""Finds questions of one pool that stand in another, word for word or nearly. Knows neither splits nor stages.

Questions are compared as words without case and marks (`flows.data.text`).

- **exact**: the same words in the same order. Where questions do not stand alone (Qasper: "What baselines do they use?" is asked of many
  papers), the two must also share a reference that tells something.
- **near**: compared are the words that carry content, that is all but articles, prepositions, present copulas and the like, with a plural
  taken as its singular. A pair is near when (a) these words are the same in the same order, or (b) the Jaccard similarity of their sets
  is at least the threshold *and* the two share a reference that tells something. Questions that do not stand alone need (b).

Similarity alone would not do, because of templates: "In which year did the United Kingdom join the treaty of Rome?" and the same question
with another country are more alike than many rewordings, but the words that differ carry the content and the references differ, so the
pair is no leak. References such as "yes", "no", "unanswerable" or a bare number are shared by chance and tell nothing.

Up to 200,000 pairs all are compared; above that MinHash LSH (datasketch, 128 permutations, 32 bands of 4: a pair at 0.8 is missed with
probability below 1e-7, one at 0.6 with 0.012) proposes pairs, and each is confirmed by its exact similarity.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import datasketch  # type: ignore[import-untyped]  # the library ships no types

from flows.data.text import normalise, words
from flows.errors import UserError
from flows.records import Item

OnLeak = Literal["stop", "drop"]

_ALL_PAIRS = 200_000
_SHOWN = 5
# Question words, negations and past forms are not among them: "when" for "where" or "was" for "is" asks something else.
_FUNCTION_WORDS = frozenset(
    re.findall(r"\w+", "a an the of in on at to for from by with s is are be do does has have this that these those please")
)
_TELLS_NOTHING = frozenset(
    re.findall(r"\w+", "yes no true false none unknown unanswerable zero one two three four five six seven eight nine ten")
)


@dataclass(frozen=True, slots=True)
class Leak:
    """Two items of different pools with the same question; the left pool is the better protected. `similarity` is 1 for exact."""

    kind: Literal["exact", "near"]
    left_pool: str
    left_item: str
    right_pool: str
    right_item: str
    similarity: float
    left_question: str
    right_question: str


class LeakageError(UserError):
    """Pools leak into each other and the spec says to stop. `leaks` holds all that were found."""

    def __init__(self, leaks: Sequence[Leak]) -> None:
        shown = [f"  {one.left_pool} {one.left_item} {one.left_question!r} ~ {one.right_pool} {one.right_item}" for one in leaks[:_SHOWN]]
        more = [f"  ... and {len(leaks) - _SHOWN} more"] if len(leaks) > _SHOWN else []
        advice = "Remove these rows, or set on_leak: drop to leave out those of the training or few-shot side."
        super().__init__("\n".join([f"{len(leaks)} questions stand in two pools:", *shown, *more, advice]))
        self.leaks = tuple(leaks)


def find_leaks(pools: Mapping[str, Sequence[Item]], *, threshold: float = 0.8, stand_alone: bool = True) -> tuple[Leak, ...]:
    """All leaks between each two pools, given in order of protection: test, few-shot, training. A pool is not compared with itself.

    `stand_alone` is `Source.stand_alone`. UserError when `threshold` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UserError(f"The threshold of near duplicates is {threshold}: set it above 0, up to 1.")
    profiles = {name: [_profile(item) for item in items] for name, items in pools.items()}
    leaks: list[Leak] = []
    for (left_pool, left), (right_pool, right) in combinations(profiles.items(), 2):
        for one, other in _candidates(left, right):
            found = _compare(one, other, threshold, stand_alone)
            if found:
                kind, similarity = found
                leaks.append(
                    Leak(kind, left_pool, one.item.id, right_pool, other.item.id, similarity, one.item.question, other.item.question)
                )
    return tuple(leaks)


def resolve_leaks(pools: Mapping[str, Sequence[Item]], leaks: Sequence[Leak], on_leak: OnLeak) -> dict[str, tuple[Item, ...]]:
    """The pools without leaks: by `drop`, the right item of each is left out; by `stop`, any leak raises LeakageError."""
    if leaks and on_leak == "stop":
        raise LeakageError(leaks)
    dropped = {(leak.right_pool, leak.right_item) for leak in leaks}
    return {name: tuple(item for item in items if (name, item.id) not in dropped) for name, items in pools.items()}


@dataclass(frozen=True, slots=True)
class _Profile:
    item: Item
    text: str
    content: tuple[str, ...]
    content_set: frozenset[str]
    references: frozenset[str]


def _profile(item: Item) -> _Profile:
    sequence = words(item.question)
    content = tuple(_singular(word) for word in sequence if word not in _FUNCTION_WORDS)
    references = frozenset(normalise(reference) for reference in item.references) if item.answerable else frozenset()
    telling = frozenset(one for one in references if one not in _TELLS_NOTHING and not one.replace(" ", "").isdigit())
    return _Profile(item, normalise(item.question), content, frozenset(content), telling)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _compare(one: _Profile, other: _Profile, threshold: float, stand_alone: bool) -> tuple[Literal["exact", "near"], float] | None:
    shared_reference = not one.references.isdisjoint(other.references)
    if one.text == other.text:
        return ("exact", 1.0) if stand_alone or shared_reference else None
    both = len(one.content_set & other.content_set)
    similarity = both / max(1, len(one.content_set | other.content_set))
    same_content = stand_alone and bool(one.content) and one.content == other.content
    return ("near", similarity) if same_content or (similarity >= threshold and shared_reference) else None


def _candidates(left: Sequence[_Profile], right: Sequence[_Profile]) -> Iterator[tuple[_Profile, _Profile]]:
    """Pairs that may be duplicates, in order of left and right."""
    if len(left) * len(right) <= _ALL_PAIRS:
        yield from product(left, right)
        return
    index = datasketch.MinHashLSH(num_perm=128, params=(32, 4))
    for n, signature in enumerate(_signatures(right)):
        index.insert(n, signature)
    for one, signature in zip(left, _signatures(left), strict=True):
        for n in sorted(index.query(signature)):
            yield one, right[n]


def _signatures(profiles: Sequence[_Profile]) -> Iterator[datasketch.MinHash]:
    # A question without words of content has its own text, so that it still meets its exact duplicate.
    sets = ([word.encode() for word in profile.content_set or {profile.text}] for profile in profiles)
    yield from datasketch.MinHash.generator(sets, num_perm=128, seed=1)
