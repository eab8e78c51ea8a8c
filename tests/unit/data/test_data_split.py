"""Splits: by cluster, seeded, stable, nested."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.data.split import few_shot_items, place, split_items, training_items
from flows.errors import UserError
from flows.records import Item


def items(sizes: list[int], prefix: str = "c") -> list[Item]:
    return [Item(f"{prefix}{c}-{n}", "?", ("a",), f"{prefix}{c}") for c, size in enumerate(sizes) for n in range(size)]


def ids(found: tuple[Item, ...]) -> list[str]:
    return [item.id for item in found]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), seed=st.integers(0, 99), data=st.data())
def test_every_item_is_used_once_no_cluster_is_on_both_sides_and_the_test_is_exact(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    source = items(sizes)
    wanted = data.draw(st.integers(1, len(source)))
    split = split_items(source, test_items=wanted, seed=seed)
    assert len(split.test) == wanted
    assert sorted(ids(split.test) + ids(split.pool) + ids(split.unused)) == sorted(item.id for item in source)
    assert {item.cluster for item in split.test}.isdisjoint(item.cluster for item in split.pool)
    assert len({item.cluster for item in split.unused}) <= 1


@given(seed=st.integers(0, 99), order=st.randoms())
def test_the_order_of_the_rows_changes_nothing(seed: int, order: Random) -> None:
    source = items([1, 2, 3, 4, 5])
    mixed = list(source)
    order.shuffle(mixed)
    assert split_items(mixed, test_items=6, seed=seed) == split_items(source, test_items=6, seed=seed)


def test_another_seed_gives_another_split() -> None:
    source = items([1] * 50)
    assert len({tuple(ids(split_items(source, test_items=10, seed=seed).test)) for seed in range(5)}) == 5


@given(added=st.integers(1, 40), seed=st.integers(0, 20))
def test_added_rows_push_out_no_more_items_than_they_bring_in(added: int, seed: int) -> None:
    source = items([1] * 60)
    before = set(ids(split_items(source, test_items=20, seed=seed).test))
    after = set(ids(split_items(source + items([1] * added, "new"), test_items=20, seed=seed).test))
    brought = {name for name in after if name.startswith("new")}
    assert len(before - after) == len(brought)
    assert after - brought < before or not brought


@given(seed=st.integers(0, 20))
def test_rows_added_behind_the_test_set_change_nothing_in_it(seed: int) -> None:
    source = items([2] * 30)
    split = split_items(source, test_items=20, seed=seed)
    last = max(place(seed, "cluster", item.cluster) for item in split.test)
    behind = [item for item in items([2] * 30, "new") if place(seed, "cluster", item.cluster) > last]
    assert behind
    assert split_items(source + behind, test_items=20, seed=seed).test == split.test


def test_a_cluster_larger_than_the_test_set_goes_to_training() -> None:
    split = split_items(items([100, *[1] * 30]), test_items=20, seed=1)
    assert {item.cluster for item in split.test}.isdisjoint({"c0"})
    assert split.unused == ()


def test_training_sets_are_nested_and_independent_of_the_test_order() -> None:
    pool = split_items(items([3] * 40), test_items=30, seed=3).pool
    small, large = training_items(pool, 20), training_items(pool, 60)
    assert large[:20] == small
    assert ids(pool) == sorted(ids(pool), key=lambda name: place(3, "item", name))


def test_few_shot_examples_are_outside_the_largest_training_set_and_change_none() -> None:
    pool = split_items(items([1] * 40), test_items=10, seed=3).pool
    shots = few_shot_items(pool, 5, largest_training=25)
    assert set(ids(shots)).isdisjoint(ids(training_items(pool, 25)))
    assert few_shot_items(pool, 3, largest_training=25) == shots[2:]
    assert few_shot_items(pool, 0) == ()


def test_too_few_items_are_the_users_mistake_and_the_message_tells_how_many_there_are() -> None:
    source = items([2] * 10)
    with pytest.raises(UserError, match="test_items is 21, but there are only 20 items"):
        split_items(source, test_items=21, seed=0)
    with pytest.raises(UserError, match="test_items is 0: set it to 1 or more"):
        split_items(source, test_items=0, seed=0)
    pool = split_items(source, test_items=10, seed=0).pool
    with pytest.raises(UserError, match="training set of 11 is asked for, but only 10 items are left"):
        training_items(pool, 11)
    with pytest.raises(UserError, match="3 few-shot examples are asked for, but only 2 of the 10 items"):
        few_shot_items(pool, 3, largest_training=8)


def test_places_are_spread_evenly_over_the_unit_interval() -> None:
    places = [place(0, "item", str(n)) for n in range(10_000)]
    counts = [sum(low / 10 <= one < (low + 1) / 10 for one in places) for low in range(10)]
    assert sum(counts) == 10_000
    assert all(850 < count < 1150 for count in counts)
    assert place(0, "a", "bc") != place(0, "ab", "c")
