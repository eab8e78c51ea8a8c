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
    best = sorted([(-round(hit.score, SCORE_DECIMALS), hit.key) for hit in leg])[:window]
    return tuple(Scored(key, -score) for score, key in best)


def settled(leg: Sequence[Scored[Key]], window: int, limit: int) -> bool:
    """Whether a ranked leg that was asked for `limit` passages shows its best `window`: those left out score less than the last of them."""
    return len(leg) < limit or leg[window - 1].score > leg[-1].score


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
    lexical_at, dense_at = _places(lexical), _places(dense)
    scores: dict[Key, float] = {}
    if lexical is None or dense is None:
        scores = {hit.key: hit.score for hit in lexical or dense or ()}
    else:
        for leg, weight in ((lexical, lexical_weight), (dense, dense_weight)):
            for rank, hit in enumerate(leg if weight else (), 1):
                scores[hit.key] = scores.get(hit.key, 0.0) + weight / (fusion_k + rank)
    best = sorted([(-score, key) for key, score in scores.items()])[:k]
    nowhere = (None, None)
    return tuple(Ranked(key, -score, *lexical_at.get(key, nowhere), *dense_at.get(key, nowhere)) for score, key in best)


def _places(leg: Sequence[Scored[Key]] | None) -> dict[Key, tuple[int, float]]:
    return {hit.key: (rank, hit.score) for rank, hit in enumerate(leg or (), 1)}
