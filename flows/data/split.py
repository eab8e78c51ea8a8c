"""Divides items into test set, training pool and few-shot pool. Knows neither contexts nor adapters.

Every cluster and every item has a place in [0, 1) by the hash of (seed, name), which depends on nothing else. The test set takes whole
clusters in order of place as long as they fit into the number wanted; one that is too large is passed over and goes to training. When
whole clusters cannot give the exact number, the smallest cluster passed over is cut, and its other items are in neither set (`unused`): a
cluster is never in both.

Stable when rows are added: no place changes, so a new cluster behind the last test cluster changes nothing, and one before it pushes out
only as many items as it brings in (and may change which cluster fills the last places).

Training sets are the first items of the pool in order of place, so a smaller set is a part of a larger one. Few-shot examples are the
last ones: they change no training set, and an item is never in both.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flows.errors import UserError
from flows.records import Item


@dataclass(frozen=True, slots=True)
class Split:
    """Items by use; all in order of place. `unused` holds what is left of a cluster that was cut for the test set."""

    test: tuple[Item, ...]
    pool: tuple[Item, ...]
    unused: tuple[Item, ...]


def place(seed: int, *names: str) -> float:
    """A number in [0, 1), uniform over names, the same on every machine: the first 8 bytes of SHA-256."""
    digest = hashlib.sha256("\x1f".join((str(seed), *names)).encode()).digest()
    # 53 bits, as many as a float holds: with 64 the quotient could round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_items(items: Iterable[Item], *, test_items: int, seed: int) -> Split:
    """Exactly `test_items` for the test, the other clusters for training. UserError when there are not enough items."""
    clusters: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        clusters[item.cluster].append(item)
    total = sum(map(len, clusters.values()))
    if test_items < 1:
        raise UserError(f"data.test_items is {test_items}: set it to 1 or more.")
    if test_items > total:
        raise UserError(f"data.test_items is {test_items}, but there are only {total} items: lower it, or read more data.")
    taken: list[str] = []
    passed: list[str] = []
    left = test_items
    for name in sorted(clusters, key=lambda name: (place(seed, "cluster", name), name)):
        fits = len(clusters[name]) <= left
        (taken if fits else passed).append(name)
        left -= len(clusters[name]) if fits else 0
    test = [item for name in taken for item in clusters[name]]
    unused: Sequence[Item] = ()
    if left:
        cut = min(passed, key=lambda name: len(clusters[name]))
        passed.remove(cut)
        ordered = _in_order(clusters[cut], seed)
        test += ordered[:left]
        unused = ordered[left:]
    pool = [item for name in passed for item in clusters[name]]
    return Split(_in_order(test, seed), _in_order(pool, seed), tuple(unused))


def training_items(pool: Sequence[Item], size: int) -> tuple[Item, ...]:
    """The first `size` items of the pool. UserError when it holds fewer."""
    if size < 1:
        raise UserError(f"A training size is {size}: set it to 1 or more.")
    if size > len(pool):
        raise UserError(
            f"A training set of {size} is asked for, but only {len(pool)} items are left for training: "
            "lower sizes or data.test_items, or read more data."
        )
    return tuple(pool[:size])


def few_shot_items(pool: Sequence[Item], count: int, *, largest_training: int = 0) -> tuple[Item, ...]:
    """The last `count` items of the pool. UserError when they would reach into the largest training set."""
    free = len(pool) - largest_training
    if count > free:
        raise UserError(
            f"{count} few-shot examples are asked for, but only {max(free, 0)} of the {len(pool)} items of the training pool are "
            f"outside the largest training set ({largest_training}): lower shots, sizes or data.test_items, or read more data."
        )
    return tuple(pool[len(pool) - count :])


def _in_order(items: Iterable[Item], seed: int) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: (place(seed, "item", item.id), item.id)))
