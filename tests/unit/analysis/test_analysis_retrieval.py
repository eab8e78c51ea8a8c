"""Retrieval measures against values worked by hand."""

import math

import pytest

from flows.analysis.retrieval import retrieval_quality
from flows.records import Hit, Item

ITEMS = [Item(f"q{number}", "?", ("a",), f"d{number}") for number in range(8)]


def ranked(item: str, *passages: str) -> list[Hit]:
    return [Hit(item, passage, rank, 1.0) for rank, passage in enumerate(passages, 1)]


def test_each_measure_has_its_textbook_value() -> None:
    hits = ranked("q0", "x", "g1", "y", "g2", "z")
    quality = retrieval_quality(ITEMS[:1], hits, {"q0": ("g1", "g2", "g3")}, depths=(1, 2))
    assert quality is not None
    found = {(metric.name, metric.k): metric.mean for metric in quality.metrics}
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert [found["recall", k] for k in (1, 2, 5)] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [found["mrr", k] for k in (1, 2, 5)] == pytest.approx([0, 0.5, 0.5])
    assert found["ndcg", 5] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)


def test_depths_beyond_what_was_retrieved_are_left_out() -> None:
    quality = retrieval_quality(ITEMS, ranked("q0", "a", "b", "c"), {"q0": ("b",)}, depths=(1, 10))
    assert quality is not None
    assert [metric.k for metric in quality.metrics if metric.name == "recall"] == [1, 3]


def test_an_item_with_gold_and_no_hit_scores_zero_and_one_without_gold_is_left_out() -> None:
    quality = retrieval_quality(ITEMS, ranked("q0", "g"), {"q0": ("g",), "q1": ("h",), "q2": ()})
    assert quality is not None
    assert quality.without_gold == 6
    assert [(entry.item, entry.values) for entry in quality.items] == [("q0", (1.0, 1.0, 1.0)), ("q1", (0.0, 0.0, 0.0))]
    assert [metric.mean for metric in quality.metrics] == [0.5, 0.5, 0.5]


def test_equal_scores_keep_the_order_of_the_ranks() -> None:
    quality = retrieval_quality(ITEMS, ranked("q0", "z", "a"), {"q0": ("z",)}, depths=(1,))
    assert quality is not None
    assert quality.metrics[0].mean == 1.0


def test_the_interval_lies_around_the_mean() -> None:
    hits = [hit for number in range(8) for hit in ranked(f"q{number}", "x", "g" if number % 2 else "y")]
    quality = retrieval_quality(ITEMS, hits, {item.id: ("g",) for item in ITEMS}, draws=1000)
    assert quality is not None
    recall = next(metric for metric in quality.metrics if (metric.name, metric.k) == ("recall", 2))
    assert recall.interval is not None
    assert recall.interval.low < recall.mean == 0.5 < recall.interval.high


def test_without_gold_or_hits_there_is_nothing_to_measure() -> None:
    assert retrieval_quality(ITEMS, ranked("q0", "a"), {}) is None
    assert retrieval_quality(ITEMS, [], {"q0": ("a",)}) is None
