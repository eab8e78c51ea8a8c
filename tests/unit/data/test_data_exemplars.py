"""Worked examples with which a base is asked what it knows."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.data.exemplars import Exemplars
from flows.errors import UserError
from flows.records import Item


def item(number: int, cluster: str | None = None, answer: str | None = None, question: str | None = None) -> Item:
    return Item(f"i{number}", question or f"What is number {number}?", (answer or f"answer {number}",), cluster or f"c{number}")


POOL = [item(number, cluster=f"c{number // 3}") for number in range(24)]


@given(st.integers(0, 23), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_no_example_could_give_the_answer_away(number: int, shots: int, sets: int, seed: int) -> None:
    asked = POOL[number]
    found = Exemplars(POOL, sets, shots, seed).of(asked)
    assert [len(shown) for shown in found] == [shots] * sets
    assert all(len(set(shown)) == shots for shown in found)
    assert all(one.cluster != asked.cluster for shown in found for one in shown)


def test_sets_differ_items_share_them_and_order_of_the_pool_means_nothing() -> None:
    exemplars = Exemplars(POOL, 3, 4, 1)
    sets = [exemplars.of(asked) for asked in POOL]
    assert len(set(sets[0])) == 3
    # Only items of the clusters of the examples, three in each, are shown others.
    assert all(max(Counter(shown).values()) >= len(POOL) - 4 * 3 for shown in zip(*sets, strict=True))
    assert Exemplars(POOL[::-1], 3, 4, 1).of(POOL[0]) == sets[0]
    assert Exemplars(POOL, 3, 4, 2).of(POOL[0]) != sets[0]
    assert Exemplars([*POOL, item(99)], 1, 4, 1).of(item(99))[0] in {shown[0] for shown in sets}


def test_the_same_question_and_the_same_answer_elsewhere_are_not_shown_but_a_yes_may_be() -> None:
    asked = item(0, answer="Paris")
    same = [item(1, question="what is number 0"), item(2, answer="paris."), item(3)]
    assert Exemplars(same, 1, 1, 0).of(asked) == ((same[2],),)
    yes = item(4, answer="yes")
    assert Exemplars([yes], 1, 1, 0).of(item(5, answer="Yes")) == ((yes,),)


def test_items_without_an_answer_are_no_examples() -> None:
    nothing = Item("u", "Who was it?", ("unanswerable",), "u", answerable=False)
    with pytest.raises(UserError, match=r"knowledge.shots is 1, but the training pool has only 0 questions.*item i0.*lower shots"):
        Exemplars([nothing], 1, 1, 0).of(item(0))
