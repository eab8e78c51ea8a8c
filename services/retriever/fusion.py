"""Ranking of a leg and reciprocal rank fusion of two (Cormack, Clarke, Buettcher 2009). Pure; every index uses this one module.

Keys are whatever an index names its passages by, as long as their order is the order of the passage ids: equal scores are always
broken by it, so that the same passages give the same order however they came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", str, int)

SCORE_DECIMALS = 5
"""Scores are rounded before they are compared: the last bits of a float32 vary with the batch that a text was encoded in."""


@dataclass(frozen=True, slots=True)
class Scored(Generic[Key]):
    """A passage as one leg returned it; larger scores are better."""

    key: Key
    score: float


@dataclass(frozen=True, slots=True)
class Ranked(Generic[Key]):
    """A passage in the result. Ranks count from 1; rank and score of a leg are None when it did not return the passage."""

    key: Key
    score: float
    lexical_rank: int | None = None
    lexical_score: float | None = None
    dense_rank: int | None = None
    dense_score: float | None = None


def ranked(leg: Iterable[Scored[Key]], window: int) -> tuple[Scored[Key], ...]:
    """The best `window` passages of a leg, best first, equal scores in the order of their keys."""
    rounded = (Scored(hit.key, round(hit.score, SCORE_DECIMALS)) for hit in leg)
    return tuple(sorted(rounded, key=lambda hit: (-hit.score, hit.key))[:window])


def fuse(
    lexical: Sequence[Scored[Key]] | None,
    dense: Sequence[Scored[Key]] | None,
    *,
    k: int,
    fusion_k: int = 60,
    lexical_weight: float = 1.0,
    dense_weight: float = 1.0,
) -> tuple[Ranked[Key], ...]:
    """The best `k` passages of one or two ranked legs (None: not asked).

    One leg keeps its own scores. Of two, a passage scores the sum over the legs of weight / (fusion_k + rank), nothing for a leg that
    did not return it; a passage that scores nothing at all (only a leg of weight 0 returned it) is no hit.
    """
    lexical_at = _places(lexical)
    dense_at = _places(dense)
    hits = []
    for key in lexical_at.keys() | dense_at.keys():
        lexical_rank, lexical_score = lexical_at.get(key, (None, None))
        dense_rank, dense_score = dense_at.get(key, (None, None))
        if lexical is None or dense is None:
            own = dense_score if lexical is None else lexical_score
            score = 0.0 if own is None else own
        else:
            score = _share(lexical_weight, fusion_k, lexical_rank) + _share(dense_weight, fusion_k, dense_rank)
            if score <= 0:
                continue
        hits.append(Ranked(key, score, lexical_rank, lexical_score, dense_rank, dense_score))
    return tuple(sorted(hits, key=lambda hit: (-hit.score, hit.key))[:k])


def _places(leg: Sequence[Scored[Key]] | None) -> dict[Key, tuple[int, float]]:
    return {hit.key: (rank, hit.score) for rank, hit in enumerate(leg or (), 1)}


def _share(weight: float, fusion_k: int, rank: int | None) -> float:
    return 0.0 if rank is None else weight / (fusion_k + rank)
