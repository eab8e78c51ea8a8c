"""Ways to search compared: measures against values worked by hand and against ir_measures on files of TREC, differences in pairs."""

import math
import random
from pathlib import Path

import ir_measures
import pytest
from ir_measures import RR, R, nDCG

from flows.analysis.retrieval_study import Ranking, StudyAnalysis, compare
from flows.records import Item

DOCUMENTS = [f"d{number}" for number in range(30)]


def items(count: int) -> list[Item]:
    return [Item(f"q{number:02}", "?", (), f"c{number // 2}") for number in range(count)]


def ranking(name: str, ranked: dict[str, list[str]], gains: dict[str, dict[str, int]], k: int = 5) -> Ranking:
    return Ranking(name, k, ranked, gains)


def analysed(found: StudyAnalysis | None) -> StudyAnalysis:
    assert found is not None
    return found


def judged(count: int, seed: int = 0) -> dict[str, dict[str, int]]:
    rng = random.Random(seed)  # noqa: S311
    return {item.id: {name: rng.choice((-1, 0, 1, 2, 3)) for name in rng.sample(DOCUMENTS, 6)} | {"d0": 1} for item in items(count)}


def shuffled(count: int, seed: int, length: int = 20) -> dict[str, list[str]]:
    rng = random.Random(seed)  # noqa: S311
    return {item.id: rng.sample(DOCUMENTS, length) for item in items(count)}


def test_graded_gains_give_the_ndcg_worked_by_hand() -> None:
    gains = {"q00": {"a": 3, "b": 1, "c": 0, "d": -1}}
    found = analysed(compare(items(1), [ranking("one", {"q00": ["b", "d", "x", "a"]}, gains)], (1, 3, 10)))
    ideal = 3 + 1 / math.log2(3)
    assert found.conditions[0].metric("ndcg", 1).mean == pytest.approx(1 / 3)
    assert found.conditions[0].metric("ndcg", 3).mean == pytest.approx(1 / ideal)
    assert found.conditions[0].metric("ndcg", 10).mean == pytest.approx((1 + 3 / math.log2(5)) / ideal)
    # What was judged and is not relevant neither is to be found nor counts as found.
    assert found.conditions[0].metric("recall", 3).mean == 0.5
    assert found.conditions[0].metric("recall", 10).mean == 1.0
    assert found.conditions[0].metric("mrr", 10).mean == 1.0


def test_every_measure_equals_ir_measures_on_files_of_trec(tmp_path: Path) -> None:
    gains, ranked = judged(12), shuffled(12, 1)
    (tmp_path / "qrels").write_text("".join(f"{q} 0 {d} {g}\n" for q, row in gains.items() for d, g in row.items()))
    (tmp_path / "run").write_text("".join(f"{q} Q0 {d} {n} {100 - n} x\n" for q, row in ranked.items() for n, d in enumerate(row, 1)))
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    found = analysed(compare(items(12), [ranking("one", ranked, gains, k=7)], (1, 3, 10)))
    for name, family in (("ndcg", nDCG), ("recall", R), ("mrr", RR)):
        for k in (1, 3, 7, 10):
            expected = ir_measures.calc_aggregate([family @ k], qrels, run)[family @ k]
            assert found.conditions[0].metric(name, k).mean == pytest.approx(expected)


def test_depths_beyond_what_was_found_are_measured_all_the_same() -> None:
    gains = {"q00": {"a": 1, "b": 1}}
    found = analysed(compare(items(1), [ranking("short", {"q00": ["x", "a"]}, gains)], (10, 100)))
    assert found.conditions[0].metric("recall", 100).mean == 0.5
    assert found.conditions[0].metric("ndcg", 100).mean == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_a_question_without_anything_to_find_is_left_out_and_one_without_hits_scores_zero() -> None:
    gains = {"q00": {"a": 1}, "q01": {"a": 1}, "q02": {"a": 0}}
    found = analysed(compare(items(4), [ranking("one", {"q00": ["a"]}, gains)], (10,)))
    assert (found.items, found.without_gold) == (("q00", "q01"), 2)
    assert found.conditions[0].metric("ndcg", 10).mean == 0.5


def test_differences_are_means_of_the_questions_own_with_an_interval_around_them() -> None:
    gains = judged(40)
    one, other = ranking("one", shuffled(40, 1), gains), ranking("other", shuffled(40, 2), gains)
    found = analysed(compare(items(40), [one, other], (10,), draws=2000))
    (difference,) = found.differences
    values = [condition.values[[(m.name, m.k) for m in condition.metrics].index(("ndcg", 10))] for condition in found.conditions]
    own = [b - a for a, b in zip(*values, strict=True)]
    assert difference.mean == pytest.approx(sum(own) / 40)
    assert (difference.above, difference.below) == (sum(v > 0 for v in own), sum(v < 0 for v in own))
    assert difference.interval is not None
    assert difference.interval.low < difference.mean < difference.interval.high
    assert found.clusters == 20


def test_a_better_condition_is_told_apart_and_one_alike_is_not() -> None:
    gains = {item.id: {"d1": 1} for item in items(40)}
    first = {item.id: (["d1", "d2"] if number % 4 else ["d2", "d1"]) for number, item in enumerate(items(40))}
    again = {item.id: (["d1", "d2"] if number % 4 != 1 else ["d2", "d1"]) for number, item in enumerate(items(40))}
    never = {item.id: ["d2", "d3"] for item in items(40)}
    rankings = [ranking(name, ranked, gains) for name, ranked in (("first", first), ("again", again), ("never", never))]
    found = analysed(compare(items(40), rankings, (10,), draws=2000))
    assert [(one.condition, one.sure) for one in found.differences] == [("again", False), ("never", True)]
    assert found.best.name == "first"


def test_a_pair_turned_round_has_the_same_size_with_the_other_sign() -> None:
    gains = judged(20)
    rankings = [ranking(name, shuffled(20, seed), gains) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    found = analysed(compare(items(20), rankings, (10,), draws=2000))
    assert [(pair.condition, pair.baseline) for pair in found.pairs] == [("b", "a"), ("c", "a"), ("c", "b")]
    there, back = found.difference("c", "b"), found.difference("b", "c")
    assert there.mean == pytest.approx(-back.mean)  # type: ignore[operator]
    assert (there.above, there.below) == (back.below, back.above)
    assert there.interval is not None
    assert back.interval is not None
    assert (there.interval.low, there.interval.high) == (-back.interval.high, -back.interval.low)


def test_conditions_that_judge_other_questions_are_compared_over_those_of_both() -> None:
    """Cut otherwise, evidence may be in no passage."""
    one = {item.id: {"d1": 1} for item in items(10)}
    other = {item.id: ({"e1": 1} if number < 6 else {}) for number, item in enumerate(items(10))}
    rankings = [ranking("one", {q: ["d1"] for q in one}, one), ranking("other", {q: ["x"] for q in one}, other)]
    found = analysed(compare(items(10), rankings, (10,), draws=1000))
    assert [condition.queries for condition in found.conditions] == [10, 6]
    assert (found.differences[0].queries, found.differences[0].mean) == (6, -1.0)


def test_a_condition_in_which_nothing_can_be_found_has_no_mean_and_is_not_the_best() -> None:
    gains = {item.id: {"d1": 1} for item in items(8)}
    rankings = [ranking("none", {}, {}), ranking("one", {q: ["x"] for q in gains}, gains)]
    found = analysed(compare(items(8), rankings, (10,), draws=1000))
    assert math.isnan(found.conditions[0].metric("ndcg", 10).mean)
    assert found.best.name == "one"
    assert found.differences[0].mean is None


def test_the_main_measure_is_at_ten_or_at_the_deepest() -> None:
    gains = {"q00": {"a": 1}}
    for depths, main in (((1, 10, 100), 10), ((1, 5), 5)):
        assert analysed(compare(items(1), [ranking("one", {"q00": ["a"]}, gains)], depths)).depth == main


def test_nothing_to_find_at_all_is_no_study() -> None:
    assert compare(items(3), [ranking("one", {}, {"q00": {"a": 0}})], (10,)) is None


def test_the_order_of_the_questions_changes_no_digit() -> None:
    gains = judged(20)
    rankings = [ranking(name, shuffled(20, seed), gains) for name, seed in (("a", 1), ("b", 2))]
    assert compare(items(20), rankings, (10,), draws=1000) == compare(items(20)[::-1], rankings, (10,), draws=1000)
