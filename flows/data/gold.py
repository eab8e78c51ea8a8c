"""Finds the gold passages of an item: those that hold its evidence. Knows neither retrieval nor training.

Chunking cuts evidence and evidence cuts passages, so the two are compared by *coverage*: the share of the words of the shorter text that
lie in a run of at least three words which the longer text holds as well. A passage is gold when coverage is at least 0.5. Containment
either way is coverage 1, and when evidence is cut in two, the larger half always reaches 0.5. Words are compared without case and marks.
Evidence of one or two words must be in the passage as a run; a passage of one or two words is gold only if it is the evidence.

Evidence that names a document is sought in that document only, evidence without one in the whole corpus; evidence that is the id of a
passage is that passage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flows.data.text import words
from flows.records import Evidence, Item, Passage

_RUN = 3

Run = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GoldMap:
    """Gold passages of each item, ids in order of the evidence; items whose evidence was found nowhere have an empty tuple."""

    passages: Mapping[str, tuple[str, ...]]
    evidence_count: int
    unmapped: tuple[tuple[str, Evidence], ...]
    """Item id and evidence that no passage holds: tables, cut sources, documents that are not in the corpus."""


def map_gold(items: Iterable[Item], passages: Sequence[Passage], *, threshold: float = 0.5) -> GoldMap:
    """The gold passages of all items, by coverage of at least `threshold` (0 to 1)."""
    by_document: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_document[passage.document].append(passage)
    indexes: dict[str, _Index] = {}
    ids = {passage.id for passage in passages}
    gold: dict[str, tuple[str, ...]] = {}
    unmapped: list[tuple[str, Evidence]] = []
    count = 0
    for item in items:
        found: dict[str, None] = {}
        for evidence in item.evidence:
            count += 1
            if evidence.text in ids:
                found[evidence.text] = None
                continue
            if evidence.document not in indexes:
                indexes[evidence.document] = _Index(by_document.get(evidence.document, []) if evidence.document else passages)
            holding = indexes[evidence.document].holding(words(evidence.text), threshold)
            found.update(dict.fromkeys(holding))
            if not holding:
                unmapped.append((item.id, evidence))
        gold[item.id] = tuple(found)
    return GoldMap(gold, count, tuple(unmapped))


class _Index:
    """Passages by the runs of words in them."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._ids = [passage.id for passage in passages]
        self._words = [words(passage.text) for passage in passages]
        self._places: dict[Run, list[int]] = defaultdict(list)
        for n, text in enumerate(self._words):
            for run in set(_runs(text)):
                self._places[run].append(n)

    def holding(self, evidence: Run, threshold: float) -> list[str]:
        """Ids of the passages that hold the evidence, in the order of the corpus."""
        if not evidence:
            return []
        if len(evidence) < _RUN:
            return [name for name, text in zip(self._ids, self._words, strict=True) if contains(text, evidence)]
        runs = _runs(evidence)
        candidates = {n for run in runs for n in self._places.get(run, ())}
        return [self._ids[n] for n in sorted(candidates) if coverage(evidence, self._words[n]) >= threshold]


def _runs(text: Run) -> list[Run]:
    return [text[n : n + _RUN] for n in range(len(text) - _RUN + 1)]


def contains(text: Run, part: Run) -> bool:
    """Whether the words of `part` are a run within `text`; no words are in no text."""
    return bool(part) and any(text[n : n + len(part)] == part for n in range(len(text) - len(part) + 1))


def coverage(one: Run, other: Run) -> float:
    """Share of the words of the shorter text that lie in runs of three which the longer one holds; 0 for texts without such a run."""
    shorter, longer = sorted((one, other), key=len)
    held = set(_runs(longer))
    covered = [False] * len(shorter)
    for n, run in enumerate(_runs(shorter)):
        if run in held:
            covered[n : n + _RUN] = [True] * _RUN
    return sum(covered) / max(len(covered), 1)
