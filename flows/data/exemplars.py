"""Worked examples with which a base is asked what it knows. Knows no model and no prompt.

Every set is an order of the training pool by hash, and an item is shown the first of it that may be shown: nearly all items then share the
same few, so the engine reads these once. Never shown is what could give the answer away: the item itself, one of its cluster, the same
question, or one with the same answer (yes and no apart, which half of such questions share).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flows.data.split import place
from flows.data.text import normalise
from flows.errors import UserError
from flows.records import Item

_SHARED_BY_CHANCE = frozenset({"yes", "no"})


@dataclass(frozen=True, slots=True)
class _Profile:
    item: Item
    question: str
    answers: frozenset[str]


class Exemplars:
    """Sets of worked examples from a pool; only items that have an answer are among them."""

    def __init__(self, pool: Iterable[Item], sets: int, shots: int, seed: int) -> None:
        self._shots = shots
        profiles = [_profile(item) for item in pool if item.answerable]
        self._sets = [
            sorted(profiles, key=lambda one: (place(seed, "exemplar", str(number), one.item.id), one.item.id)) for number in range(sets)
        ]

    def of(self, item: Item) -> tuple[tuple[Item, ...], ...]:
        """The worked examples for this item, one tuple a set. UserError when the pool holds too few that may be shown."""
        asked = _profile(item)
        return tuple(self._first(asked, profiles) for profiles in self._sets)

    def _first(self, asked: _Profile, profiles: Iterable[_Profile]) -> tuple[Item, ...]:
        found: list[Item] = []
        for profile in profiles:
            if len(found) == self._shots:
                break
            if profile.item.cluster != asked.item.cluster and profile.question != asked.question and not profile.answers & asked.answers:
                found.append(profile.item)
        if len(found) < self._shots:
            raise UserError(
                f"knowledge.shots is {self._shots}, but the training pool has only {len(found)} questions that can be worked examples for "
                f"item {asked.item.id} (of another cluster, with another answer): lower shots, or read more data"
            )
        return tuple(found)


def _profile(item: Item) -> _Profile:
    answers = frozenset(normalise(reference) for reference in item.references) - _SHARED_BY_CHANCE
    return _Profile(item, normalise(item.question), answers)
