"""Pairs of answers for the families of method dpo: read or made, cleared of test questions, put in order. Asks no service.

No pair may teach an answer to a question of this trial's test. Pairs of the very questions and clusters of the test set are left out, as
a split leaves them out of training, and counted. What repeats a test question in another place is a leak: it stops the trial, or is left
out and counted, as `data.on_leak` says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio.to_thread

from flows.data.gold import contains
from flows.data.leakage import Leak, find_leaks, resolve_leaks
from flows.data.preferences import Pair, Preferences, read_preferences
from flows.data.split import place
from flows.data.text import words
from flows.earlier_run import files_of, pairs_of_run
from flows.errors import UserError
from flows.records import Item
from flows.stages.prepare import Prepared
from flows.training_spec import TrainingSpec
from flows.trial import Trial

# A shorter question may stand in any text by chance.
_FEWEST_WORDS = 3
_POOL = "preferences"


async def preferences(trial: Trial, prepared: Prepared) -> Prepared:
    """The same with the pairs of each family that learns from pairs. Raises UserError, DataError and LeakageError with what to change."""
    families = {name: training for name, training in trial.spec.training.items() if training.preferences is not None}
    if not families:
        return prepared
    trial.progress.stage("pairs", len(families))
    found = {}
    for name, training in families.items():
        found[name] = await anyio.to_thread.run_sync(_of_family, trial, prepared, name, training)
        trial.progress.advance("pairs", note=name)
        trial.progress.say(f"pairs of {name}: {told(found[name].counts)}")
    trial.progress.finish("pairs", ", ".join(f"{name} {len(one.pairs)}" for name, one in found.items()))
    return replace(prepared, pairs=found)


def divided_pairs(trial: Trial, prepared: Prepared, family: str, size: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and rows to evaluate on, of the first `size` pairs. Whole clusters, drawn by their names as for questions."""
    share = trial.spec.training[family].evaluation
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for pair in prepared.pairs[family].pairs[:size]:
        rows[place(trial.spec.data.seed, "evaluation", pair.cluster) < share].append(pair.row())
    if share and not all(rows):
        raise UserError(
            f"training.{family}: of {size} pairs {len(rows[1])} would be kept for evaluation (share {share:g}, whole clusters): change "
            "evaluation, or train on more pairs"
        )
    return rows


def told(counts: Mapping[str, int]) -> str:
    """`300 questions, 1200 answers, 180 pairs, 12 pairs on test questions`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _of_family(trial: Trial, prepared: Prepared, name: str, training: TrainingSpec) -> Preferences:
    spec = training.preferences
    assert spec is not None  # noqa: S101  checked by whoever asks
    if spec.run is not None:
        try:
            pairs, counts = pairs_of_run(trial.loaded.resolve(spec.run), spec, trial.template)
        except UserError as error:
            raise UserError(f"training.{name}.preferences.run: {error}") from None
    else:
        (path,) = files_of(spec, trial.loaded.resolve).values()
        pairs = read_preferences(path)
        counts = {"pairs": len(pairs)}
    apart = _apart(prepared, pairs)
    leaks = tuple(_leaks(trial, prepared, apart))
    free = resolve_leaks({"test": prepared.test, _POOL: _as_items(apart)}, leaks, trial.spec.data.on_leak)[_POOL]
    sound = {item.id for item in free}
    kept = sorted((pair for pair in apart if pair.id in sound), key=lambda pair: (place(trial.spec.data.seed, "pair", pair.id), pair.id))
    left_out = {"pairs on test questions": len(pairs) - len(apart), "pairs that repeat a test question": len(apart) - len(kept)}
    counts = counts | {reason: count for reason, count in left_out.items() if count}
    largest = max(training.sizes)
    if largest > len(kept):
        raise UserError(
            f"training.{name}: a training set of {largest} pairs is asked for, but there are {len(kept)} ({told(counts)}): "
            + ("lower sizes, min_gap or data.test_items, or name more arms" if spec.run else "lower sizes, or give more rows")
        )
    return Preferences(tuple(kept), counts | {"pairs that can be used": len(kept)}, leaks)


def _apart(prepared: Prepared, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of other questions and clusters than those of the test set."""
    items, clusters = {item.id for item in prepared.test}, {item.cluster for item in prepared.test}
    return [pair for pair in pairs if pair.item not in items and pair.cluster not in clusters]


def _as_items(pairs: Sequence[Pair], test: Sequence[Item] = ()) -> tuple[Item, ...]:
    """Pairs as questions. The right answers of one that a file brought are those of test questions that its chosen answer holds."""
    starts: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for item in test:
        for reference in map(words, item.references):
            starts["".join(reference[:1])].add(reference)
    return tuple(Item(pair.id, pair.question, (*pair.references, *_held(pair, starts)), pair.cluster) for pair in pairs)


def _held(pair: Pair, starts: Mapping[str, set[tuple[str, ...]]]) -> Iterator[str]:
    said = () if pair.item else words(pair.chosen)
    for at, word in enumerate(said):
        yield from (" ".join(one) for one in starts.get(word, ()) if said[at : at + len(one)] == one)


def _leaks(trial: Trial, prepared: Prepared, pairs: Sequence[Pair]) -> Iterator[Leak]:
    """Test questions that pairs ask too, or that stand in the prompts that a file brought."""
    pools, seen = {"test": prepared.test, _POOL: _as_items(pairs, prepared.test)}, set()
    for leak in find_leaks(pools, threshold=trial.spec.data.near_duplicate, stand_alone=prepared.stand_alone):
        seen.add(leak.right_item)
        yield leak
    starts: dict[tuple[str, ...], list[tuple[tuple[str, ...], Item]]] = defaultdict(list)
    for item in prepared.test:
        asked = words(item.question)
        if len(asked) >= _FEWEST_WORDS:
            starts[asked[:_FEWEST_WORDS]].append((asked, item))
    for pair in pairs:
        if pair.item or pair.id in seen:
            continue
        if (held := _stands_in(pair, starts, stand_alone=prepared.stand_alone)) is not None:
            yield Leak("exact", "test", held.id, _POOL, pair.id, 1.0, held.question, pair.question)


def _stands_in(pair: Pair, starts: Mapping[tuple[str, ...], Sequence[tuple[tuple[str, ...], Item]]], *, stand_alone: bool) -> Item | None:
    """A test question that stands in the prompt word for word; where questions do not stand alone, only with its answer chosen."""
    for turn in pair.prompt:
        text = words(turn["content"])
        for at in range(len(text)):
            for asked, item in starts.get(text[at : at + _FEWEST_WORDS], ()):
                same_answer = any(contains(words(pair.chosen), words(reference)) for reference in item.references)
                if text[at : at + len(asked)] == asked and (stand_alone or same_answer):
                    return item
    return None
