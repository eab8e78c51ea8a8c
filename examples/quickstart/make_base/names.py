"""Invented names, and which of them the base model may never see in training.

A name is two or three syllables, the first capitalised. One name in ten, chosen by a hash, is *reserved*: training never draws it, and the
reading test and the quickstart's own documents draw nothing else. So no answer of the quickstart can be remembered from training.
"""

from __future__ import annotations

import random
import zlib

_CONSONANTS = tuple("bdfgklmnprstvz")
_VOWELS = tuple("aeiou")
_CLOSINGS = tuple("lnrsx")
_CLOSED_SYLLABLES_DRAWN = 110
_RESERVED_ONE_IN = 10


def _syllables() -> tuple[str, ...]:
    rng = random.Random(7)  # noqa: S311  # a fixed alphabet, no secret
    open_ones = {consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS}
    closed = {rng.choice(_CONSONANTS) + rng.choice(_VOWELS) + rng.choice(_CLOSINGS) for _ in range(_CLOSED_SYLLABLES_DRAWN)}
    return tuple(sorted(open_ones | closed))


SYLLABLES = _syllables()


def reserved(name: str) -> bool:
    """True for the tenth of all names that training never draws."""
    return zlib.crc32(name.encode()) % _RESERVED_ONE_IN == 0


def draw(rng: random.Random, held_out: bool) -> str:
    """One name of the reserved tenth (`held_out`) or of the other nine."""
    while True:
        name = "".join(rng.choice(SYLLABLES) for _ in range(2 if rng.random() < 0.7 else 3)).capitalize()
        if reserved(name) == held_out:
            return name
