"""What training would ask for, before any of it is done: jobs and tokens. Knows no service; tokens are estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flows.data.preferences import Pair, Preferences
from flows.data.tokens import word_spans
from flows.training_spec import TrainingSpec

_EPOCHS = 3.0
_PAIRS_READ = 200
"""So many pairs tell how long they are."""


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Jobs, searches included; `search_jobs` are those of searches alone, at most."""

    jobs: int
    search_jobs: int
    tokens: float


def training_cost(
    families: Mapping[str, TrainingSpec], pairs: Mapping[str, Preferences], *, shown: float, asked: float, a_word: float
) -> TrainingCost:
    """Of all families. `shown` are tokens of the passages of a prompt, `asked` those of question and answer, `a_word` tokens of a word."""
    jobs, searches, tokens = 0, 0, 0.0
    for name, training in families.items():
        if training.preferences is None:
            example = asked + (0.0 if training.context_name == "none" else shown)
        else:
            example = _words(pairs[name].pairs) * a_word if name in pairs else 2 * (shown + asked)
        for size in training.sizes:
            jobs += len(training.seeds)
            tokens += len(training.seeds) * example * _examples(training, size)
        if training.search is not None:
            # What is taken is trained already, for one size and seed.
            searches += training.search.trials - 1
            tokens += (training.search.trials - 1) * example * _most_examples(training, max(training.sizes))
    return TrainingCost(jobs + searches, searches, tokens)


def _examples(training: TrainingSpec, size: int) -> float:
    return training.max_steps * training.batch_size if training.max_steps else size * (training.epochs or _EPOCHS)


def _most_examples(training: TrainingSpec, size: int) -> float:
    """With the longest of the courses that a search may try."""
    search = training.search
    steps, epochs = (search.largest("max_steps"), search.largest("epochs")) if search else (None, None)
    if steps is not None:
        return steps * ((search.largest("batch_size") if search else None) or training.batch_size)
    return size * epochs if epochs is not None else _examples(training, size)


def _words(pairs: Iterable[Pair]) -> float:
    """Words of a pair as it is trained on: the prompt with each answer."""
    counted = [
        2 * sum(len(word_spans(turn["content"])) for turn in pair.prompt) + len(word_spans(pair.chosen)) + len(word_spans(pair.rejected))
        for pair, _ in zip(pairs, range(_PAIRS_READ), strict=False)
    ]
    return sum(counted) / max(1, len(counted))
