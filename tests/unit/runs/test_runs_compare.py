"""Two runs side by side: what differs, what can be compared, how far arms moved, which verdicts changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from run_folders import BASE, SEEDED, items, write_run

from flows.comparison.compare import Comparison, compare
from flows.errors import UserError
from flows.finished_run import find_run

COUNT = 60


def noise(seed: int, sd: float = 0.5, count: int = COUNT) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).normal(3.0, sd, count)]


def compared(first: Path, second: Path) -> Comparison:
    return compare(find_run(str(first), first.parent), find_run(str(second), second.parent))


def two(tmp_path: Path, first: dict[str, Any], second: dict[str, Any], **both: Any) -> Comparison:
    return compared(write_run(tmp_path / "small-1", **{**both, **first}), write_run(tmp_path / "small-2", **{**both, **second}))


def scores(tuned: list[float], base: list[float] | None = None) -> dict[str, Any]:
    return {"accuracy": {"base": base or noise(1), "tuned": tuned}}


def test_a_planted_move_is_found_and_the_arm_that_stayed_is_unmoved(tmp_path: Path) -> None:
    before, shift = noise(2), [value - 3 for value in noise(3, sd=0.2)]
    after = [value + 0.4 + change for value, change in zip(before, shift, strict=True)]
    texts = {"base": ["same"] * COUNT, "tuned": [f"other {n}" for n in range(COUNT)]}
    found = two(tmp_path, {"scores": scores(before)}, {"scores": scores(after), "texts": texts})
    base, tuned = found.moves
    assert (base.reading, base.difference, base.p_value, base.answers_same) == ("unmoved", 0, None, COUNT)
    assert (tuned.reading, tuned.items, tuned.clusters, tuned.answers_same) == ("higher", COUNT, COUNT // 2, 0)
    difference = np.array(after) - np.array(before)
    fitted = sm.OLS(difference, np.ones(COUNT)).fit(cov_type="cluster", cov_kwds={"groups": np.arange(COUNT) // 2})
    low, high = fitted.conf_int()[0]
    assert tuned.difference == pytest.approx(fitted.params[0])
    assert tuned.interval is not None
    assert (tuned.interval.low, tuned.interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert tuned.p_value_adjusted == tuned.p_value, "the arm that did not move does not count in the correction"
    assert tuned.second == pytest.approx(np.mean(after))
    largest = max(range(COUNT), key=lambda n: abs(difference[n]))
    assert tuned.most_changed[0].item == f"q{largest:03}"
    assert (tuned.items_above + tuned.items_equal + tuned.items_below) == COUNT


def test_exchanging_the_runs_turns_every_sign(tmp_path: Path) -> None:
    texts = {"tuned": ["other"] * COUNT}
    one = write_run(tmp_path / "small-1", scores(noise(4)))
    other = write_run(tmp_path / "small-2", scores(noise(5)), texts=texts)
    forth, back = compared(one, other).moves[1], compared(other, one).moves[1]
    assert forth.difference == pytest.approx(-(back.difference or 0))
    assert (forth.items_above, forth.items_below) == (back.items_below, back.items_above)


def test_a_rubric_of_another_hash_cannot_be_compared_and_the_others_can(tmp_path: Path) -> None:
    both = {criterion: {"base": noise(1), "tuned": noise(2)} for criterion in ("accuracy", "completeness")}
    found = two(tmp_path, {}, {"rubrics": {"completeness": "another-hash"}}, scores=both)
    assert {move.criterion for move in found.moves} == {"accuracy"}
    assert found.not_comparable == ("contrasts on completeness: the rubrics differ (hash-com and another-)",)
    assert [pair.unlike for pair in found.verdicts] == [(), ("the rubric",)]
    assert [(one.part, one.key) for one in found.inputs] == [("rubrics", "completeness.hash")]


def test_a_criterion_that_one_run_lacks_is_named(tmp_path: Path) -> None:
    one = scores(noise(2))
    found = two(tmp_path, {"scores": one | {"completeness": one["accuracy"]}}, {"scores": one})
    assert found.not_comparable == ("contrasts on completeness: small-2 was not judged on it",)


def test_other_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    asked = items(COUNT)
    changed = [replace(asked[0], references=("It is another thing.",)), replace(asked[1], cluster="elsewhere"), *asked[2:50]]
    more = items(3, prefix="new")
    found = two(
        tmp_path,
        {"scores": scores(noise(2)), "asked": asked},
        {"scores": scores(noise(3, count=53), noise(1, count=53)), "asked": [*changed, *more]},
    )
    assert (found.items.common, found.items.changed, found.items.only_first, found.items.only_second) == (48, 2, 10, 3)
    assert {move.items for move in found.moves} == {48}
    assert found.notes[0].endswith("over the 48 that both have, without 12 of small-1 and 5 of small-2")
    assert all("the questions" in pair.unlike for pair in found.verdicts)


def test_without_a_common_question_nothing_is_compared(tmp_path: Path) -> None:
    found = two(tmp_path, {}, {"asked": items(COUNT, prefix="other")}, scores=scores(noise(2)))
    assert (found.comparable, found.moves) == (False, ())
    assert found.not_comparable == ("nothing: the runs have no test item in common",)


def test_arms_of_one_run_only_are_named_and_the_same_weights_are_paired_seed_by_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    seeds = [[float(x) for x in rng.normal(centre, 0.2, COUNT)] for centre in (2.0, 4.0)]
    moved = [[value + 0.3 + float(rng.normal(0, 0.05)) for value in row] for row in seeds]
    who = (BASE, *SEEDED)

    def run(name: str, rows: list[list[float]], weights: dict[tuple[str, int, int], str]) -> Path:
        by_contestant = {"base": noise(1), **{one.id: row for one, row in zip(SEEDED, rows, strict=True)}}
        texts = {one.id: [name] * COUNT for one in SEEDED}
        return write_run(tmp_path / name, {"accuracy": by_contestant}, who=who, primary="raft", weights=weights, texts=texts)

    weights = {("raft", 100, 1): "aa", ("raft", 100, 2): "bb"}
    one = run("first-1", seeds, weights)
    same, trained_again = run("same-2", moved, weights), run("again-3", moved, weights | {("raft", 100, 2): "cc"})
    paired, independent = (compared(one, other).moves[1] for other in (same, trained_again))
    assert (paired.seeds_paired, independent.seeds_paired) == (True, False)
    assert paired.difference == pytest.approx(independent.difference)
    assert paired.reading == "higher", "the same weights differ by 0.3, whatever the seeds do among themselves"
    assert independent.reading == "not told apart", "two trainings that lie 2 points apart say nothing about 0.3"
    lonely = compared(one, write_run(tmp_path / "tuned-4", scores(noise(2))))
    assert lonely.not_comparable == ("raft: only in first-1", "tuned: only in tuned-4")
    assert [move.arm for move in lonely.moves] == ["base"]


def test_a_changed_verdict_says_what_the_two_do_not_share(tmp_path: Path) -> None:
    better, worse = ([value + by for value in noise(1)] for by in (0.5, -0.5))
    found = two(tmp_path, {"scores": scores(better)}, {"scores": scores(worse), "margin": 0.4, "texts": {"tuned": ["x"] * COUNT}})
    [pair] = found.verdicts
    assert (pair.first_verdict, pair.second_verdict, pair.changed, pair.primary) == ("BETTER", "WORSE", True, True)
    assert pair.unlike == ("the margin (0.2 and 0.4)",)
    same = compared(write_run(tmp_path / "a-3", scores(better)), write_run(tmp_path / "b-4", scores(better)))
    assert [(pair.changed, pair.unlike) for pair in same.verdicts] == [(False, ())]
    assert "both runs were made from the same inputs" in same.notes
    assert same.inputs == ()


def test_what_differs_in_the_inputs_is_listed_once(tmp_path: Path) -> None:
    one = {"data": {"sources": [{"reader": "table", "limit": None}]}, "judge": {"runs": 1}}
    other = {"data": {"sources": [{"reader": "table"}]}, "judge": {"runs": 10}, "training": {"lora": {"epochs": 3, "rank": 16}}}
    found = two(
        tmp_path,
        {"spec": one, "inputs": {"files": {"a.jsonl": "aa", "old.jsonl": "c0"}}},
        {"spec": other, "inputs": {"files": {"renamed.jsonl": "aa", "new.jsonl": "d0"}}, "versions": {"torch": "2.9"}, "reranker": "m@1"},
        scores=scores(noise(2)),
    )
    assert {(one.part, one.key, json.dumps(one.first), json.dumps(one.second)) for one in found.inputs} == {
        ("spec", "judge.runs", "1", "10"),
        ("spec", "training", "null", '{"lora": {"epochs": 3, "rank": 16}}'),
        ("data", "old.jsonl", '"c0"', "null"),
        ("data", "new.jsonl", "null", '"d0"'),
        ("versions", "torch", "null", '"2.9"'),
        ("reranker", "model", '""', '"m@1"'),
    }


def test_items_without_a_score_in_one_run_are_dropped_and_counted(tmp_path: Path) -> None:
    before = noise(2)
    after: list[Any] = [None, None, *(value + 0.1 for value in before[2:])]
    _, tuned = two(tmp_path, {"scores": scores(before)}, {"scores": scores(after), "texts": {"tuned": ["x"] * COUNT}}).moves
    assert (tuned.items, tuned.items_dropped) == (COUNT - 2, 2)
    assert tuned.difference == pytest.approx(0.1)


def test_one_run_given_twice_and_a_missing_table_are_mistakes(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name, scores(noise(2))) for name in ("small-1", "small-2"))
    with pytest.raises(UserError, match="small-1 is given twice"):
        compared(one, one)
    (other / "judgements.parquet").unlink()
    with pytest.raises(UserError, match=r"judgements\.parquet cannot be read"):
        compared(one, other)
    (other / "judgements.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"judgements\.parquet cannot be read"):
        compared(one, other)
