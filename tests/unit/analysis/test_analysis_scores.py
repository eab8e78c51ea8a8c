"""Averaging of judgements: what is missing stays missing and is counted."""

import numpy as np
import pytest

from flows.analysis.scores import ScoreTable, score_table
from flows.records import Contestant, Item, Judgement, Metric

ITEMS = [Item("q2", "?", ("a",), "doc-b"), Item("q1", "?", ("a",), "doc-a"), Item("q3", "?", ("a",), "doc-a")]
BASE = Contestant("base", "base", "small")
SEED_1, SEED_2 = (Contestant("raft", "raft", "small", adapter="x", size=10, seed=seed) for seed in (1, 2))


def judgement(item: str, score: float | None, *, contestant: Contestant = BASE, sample: int = 0, run: int = 0, **more: object) -> Judgement:
    fields: dict[str, object] = {"criterion": "accuracy", "reply": "", "prompt_tokens": 1, "completion_tokens": 1, "cost_usd": 0.0}
    return Judgement(contestant=contestant.id, item=item, score=score, sample=sample, run=run, **{**fields, **more})  # type: ignore[arg-type]


def row(table: ScoreTable, arm: str = "base", seed: int = 0) -> list[float]:
    return [float(value) for value in table.scores[arm, "accuracy"][seed]]


def test_runs_are_averaged_within_samples_and_samples_within_items() -> None:
    judged = [
        judgement("q1", 1.0),
        judgement("q1", 2.0, run=1),
        judgement("q1", 3.0, run=2),
        judgement("q1", 5.0, sample=1),
        judgement("q1", None, sample=1, run=1),
    ]
    assert row(score_table(ITEMS, [BASE], judged)) == pytest.approx([np.nan, 3.5, np.nan], nan_ok=True)


def test_an_item_without_a_valid_run_is_missing_and_counted_by_reason() -> None:
    judged = [
        judgement("q1", None, error="unparsed"),
        judgement("q1", None, run=1, error="unparsed"),
        judgement("q2", None, error="refused"),
    ]
    table = score_table(ITEMS, [BASE], [*judged, judgement("q3", 4.0)])
    assert row(table) == pytest.approx([np.nan, np.nan, 4.0], nan_ok=True)
    missing = table.missing["base", "accuracy"]
    assert (missing.judgements, missing.missing, missing.items) == (4, 3, 2)
    assert missing.reasons == (("unparsed", 2), ("refused", 1))


def test_seeds_of_an_arm_stay_apart_in_order() -> None:
    judged = [judgement("q1", 4.0, contestant=SEED_2), judgement("q1", 2.0, contestant=SEED_1)]
    table = score_table(ITEMS, [SEED_2, SEED_1], judged)
    assert [contestant.seed for contestant in table.arms["raft"]] == [1, 2]
    assert (row(table, "raft", 0)[1], row(table, "raft", 1)[1]) == (2.0, 4.0)


def test_clusters_are_numbered_by_name() -> None:
    table = score_table(ITEMS, [BASE], [])
    assert table.cluster_names == ("doc-a", "doc-b")
    assert list(table.clusters) == [1, 0, 0]


def test_the_noise_of_the_judge_is_pooled_over_answers() -> None:
    judged = [judgement("q1", 1.0), judgement("q1", 3.0, run=1), judgement("q2", 4.0), judgement("q2", 4.0, run=1), judgement("q3", 5.0)]
    # Variances 2 and 0, each with one degree of freedom; one run says nothing.
    assert score_table(ITEMS, [BASE], judged).judge_sd["base", "accuracy"] == pytest.approx(1.0)
    assert score_table(ITEMS, [BASE], [judgement("q1", 1.0)]).judge_sd["base", "accuracy"] is None


def test_raw_metrics_are_averaged_like_scores() -> None:
    judged = [judgement("q1", 4.0, metrics=(Metric("token_f1", 0.2),)), judgement("q1", 4.0, run=1, metrics=(Metric("token_f1", 0.4),))]
    table = score_table(ITEMS, [BASE], judged)
    assert table.metrics == ("token_f1",)
    assert table.metric_values["base", "token_f1"][0, 1] == pytest.approx(0.3)


def test_an_arm_without_judgements_on_a_criterion_is_all_missing() -> None:
    table = score_table(ITEMS, [BASE, SEED_1], [judgement("q1", 4.0)])
    assert np.isnan(table.scores["raft", "accuracy"]).all()
    assert table.missing["raft", "accuracy"].judgements == 0


def test_what_is_listed_twice_or_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="item 'q1' is listed twice"):
        score_table([ITEMS[1], ITEMS[1]], [BASE], [])
    with pytest.raises(ValueError, match="contestant 'base' is listed twice"):
        score_table(ITEMS, [BASE, BASE], [])
    with pytest.raises(ValueError, match="'q9', which is not among"):
        score_table(ITEMS, [BASE], [judgement("q9", 1.0)])
    with pytest.raises(ValueError, match="is there twice"):
        score_table(ITEMS, [BASE], [judgement("q1", 1.0), judgement("q1", 2.0)])
