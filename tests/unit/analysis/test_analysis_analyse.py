"""A whole trial analysed: planted effects are found, and the result can be written down and repeated."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from flows.analysis.analyse import Analysis, analyse
from flows.analysis.settings import AnalysisSettings, Primary
from flows.analysis.verdict import Verdict
from flows.records import Answer, Contestant, Hit, Item, Judgement, Metric

SETTINGS = AnalysisSettings(control="base", primary=Primary("raft-1000", "accuracy"), margin=0.1, bootstrap=2000, seed=5)
EFFECTS = {"base": 0.0, "raft-200": 0.02, "raft-1000": 0.4, "closed": -0.8}


def trial(items: int = 120) -> tuple[list[Item], list[Contestant], list[Answer], list[Judgement], list[Hit], dict[str, tuple[str, ...]]]:
    """Questions in clusters of two; the arms differ from the control by EFFECTS on accuracy and not at all on completeness."""
    rng = np.random.default_rng(2)
    asked = [
        Item(f"q{n:03}", "?", ("a",), f"d{n // 2:03}", kind="yesno" if n % 3 else "list", answerable=n % 10 != 0) for n in range(items)
    ]
    contestants = [Contestant("base", "base", "small"), Contestant("closed", "closed", "small", rag=False)]
    contestants += [
        Contestant(f"raft-{size}", "raft", "small", adapter="x", size=size, seed=seed) for size in (1000, 200) for seed in (1, 2, 3)
    ]
    difficulty = rng.normal(3, 1, items)
    answers, judgements = [], []
    for contestant in contestants:
        for item, level in zip(asked, difficulty, strict=True):
            failed = contestant.arm == "closed" and item.id == "q007"
            answers.append(
                Answer(
                    contestant=contestant.id,
                    item=item.id,
                    sample=0,
                    text=None if failed else "two words",
                    abstained=not item.answerable,
                    finish_reason="error" if failed else "stop",
                    prompt_tokens=10,
                    completion_tokens=3,
                    latency_ms=100.0,
                    cost_usd=0.01,
                    prompt_hash="h",
                    passages=(),
                    cut=(),
                    cited=(),
                    error="DEADLINE_EXCEEDED" if failed else None,
                )
            )
            for criterion in ("accuracy", "completeness"):
                effect = EFFECTS[contestant.arm] if criterion == "accuracy" else 0.0
                score = None if failed else float(level + effect + rng.normal(0, 0.2))
                judgements.append(
                    Judgement(
                        contestant=contestant.id,
                        item=item.id,
                        sample=0,
                        criterion=criterion,
                        run=0,
                        score=score,
                        reply="",
                        prompt_tokens=20,
                        completion_tokens=1,
                        cost_usd=0.001,
                        error="no answer" if failed else None,
                        metrics=() if failed else (Metric("exact_match", 1.0),),
                    )
                )
    hits = [Hit(item.id, f"{item.cluster}#{rank}", rank, 1.0) for item in asked for rank in (1, 2)]
    return asked, contestants, answers, judgements, hits, {item.id: (f"{item.cluster}#1",) for item in asked}


def analysed(settings: AnalysisSettings = SETTINGS, items: int = 120) -> Analysis:
    asked, contestants, answers, judgements, hits, gold = trial(items)
    return analyse(asked, contestants, answers, judgements, hits=hits, gold=gold, settings=settings)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analysed()


def test_planted_effects_get_their_verdicts(analysis: Analysis) -> None:
    verdicts = {(contrast.arm, contrast.criterion): contrast.verdict for contrast in analysis.contrasts}
    assert verdicts["raft-1000", "accuracy"] is Verdict.BETTER
    assert verdicts["raft-200", "accuracy"] in (Verdict.NON_INFERIOR, Verdict.BETTER)
    assert verdicts["closed", "accuracy"] is Verdict.WORSE
    assert verdicts["closed", "completeness"] is Verdict.NON_INFERIOR


def test_the_primary_contrast_comes_first_and_only_once(analysis: Analysis) -> None:
    assert analysis.contrasts[0] is analysis.primary
    assert [contrast.primary for contrast in analysis.contrasts] == [True] + [False] * 5
    assert len({(contrast.arm, contrast.criterion) for contrast in analysis.contrasts}) == 6
    assert analysis.primary.interval == analysis.primary.simultaneous
    assert analysis.primary.p_value == analysis.primary.p_value_adjusted
    assert analysis.primary.sentence.startswith("raft-1000 is BETTER than base on accuracy: 0.4")
    assert analysis.primary.sentence.endswith("on 1-5, margin 0.1, 120 items, 3 seeds")


def test_secondary_contrasts_are_corrected_for_their_number(analysis: Analysis) -> None:
    for contrast in analysis.contrasts[1:]:
        assert contrast.interval is not None
        assert contrast.simultaneous is not None
        assert contrast.simultaneous.low < contrast.interval.low
        assert contrast.p_value is not None
        assert contrast.p_value_adjusted is not None
        assert contrast.p_value_adjusted >= contrast.p_value


def test_an_item_without_an_answer_is_dropped_from_its_contrast_and_reported(analysis: Analysis) -> None:
    closed = next(contrast for contrast in analysis.contrasts if contrast.arm == "closed")
    assert (closed.items, closed.items_dropped) == (119, 1)
    assert "items dropped because one of the two has no score: 1" in closed.notes
    assert closed.items_above + closed.items_equal + closed.items_below == 119
    assert analysis.primary.items_dropped == 0


def test_the_arms_are_summed_up(analysis: Analysis) -> None:
    arms = {arm.arm: arm for arm in analysis.arms}
    closed = arms["closed"]
    assert (closed.usage.answers, closed.usage.errors, closed.usage.error_reasons) == (120, 1, (("DEADLINE_EXCEEDED", 1),))
    assert (closed.usage.words_mean, closed.usage.tokens_median, closed.usage.latency_p95_ms) == (2.0, 3.0, 100.0)
    assert closed.usage.cost_usd == pytest.approx(1.2)
    assert (closed.scores[0].missing.missing, closed.scores[0].missing.reasons) == (1, (("no answer", 1),))
    raft = arms["raft-1000"]
    assert (raft.seeds, raft.usage.answers) == ((1, 2, 3), 360)
    assert raft.scores[0].seed_sd is not None
    assert raft.scores[0].seed_sd < 0.1
    assert [entry.seed for entry in raft.scores[0].seeds] == [1, 2, 3]
    assert arms["base"].scores[0].seed_sd is None
    assert arms["base"].metrics[0].mean.value == 1.0


def test_an_unknown_price_is_none_and_counted_never_zero(analysis: Analysis) -> None:
    assert (analysis.totals.unpriced, analysis.totals.judge_unpriced) == (0, 0)
    asked, contestants, answers, judgements, hits, gold = trial(12)
    free = [replace(answer, cost_usd=None) if answer.contestant == "closed" else answer for answer in answers]
    priced = [replace(judgement, cost_usd=None) for judgement in judgements]
    told = analyse(asked, contestants, free, priced, hits=hits, gold=gold, settings=SETTINGS)
    closed = next(arm for arm in told.arms if arm.arm == "closed").usage
    assert (closed.cost_usd, closed.unpriced, closed.judge_cost_usd, closed.judge_unpriced) == (None, 12, None, 24)
    assert told.totals.cost_usd == pytest.approx(0.84)
    assert (told.totals.unpriced, told.totals.judge_cost_usd) == (12, None)


def test_abstention_is_held_against_what_could_be_answered(analysis: Analysis) -> None:
    base = next(arm for arm in analysis.arms if arm.arm == "base").abstention
    assert (base.unanswerable, base.answerable) == (12, 108)
    assert (base.rate, base.rate_answerable, base.rate_unanswerable, base.correct) == (0.1, 0.0, 1.0, 1.0)


def test_kinds_of_questions_are_shown_apart(analysis: Analysis) -> None:
    kinds = {entry.kind: entry.mean for entry in analysis.arms[0].scores[0].kinds}
    assert (kinds["list"].items, kinds["yesno"].items) == (40, 80)


def test_the_curve_runs_over_training_sizes_in_order(analysis: Analysis) -> None:
    curve = next(curve for curve in analysis.curves if curve.criterion == "accuracy")
    assert (curve.family, [point.size for point in curve.points], [point.seeds for point in curve.points]) == ("raft", [200, 1000], [3, 3])
    small, large = (point.mean.value for point in curve.points)
    assert small is not None
    assert large is not None
    assert small < large


def test_differences_by_item_and_totals_add_up(analysis: Analysis) -> None:
    differences = [entry.difference for entry in analysis.item_differences if entry.difference is not None]
    assert np.mean(differences) == pytest.approx(analysis.primary.difference)
    assert analysis.totals.answers == 8 * 120
    assert analysis.totals.prompt_tokens == 8 * 120 * 10
    assert analysis.totals.judgements == 2 * 8 * 120
    assert analysis.totals.judge_cost_usd == pytest.approx(1.92)
    assert analysis.retrieval is not None
    assert {metric.mean for metric in analysis.retrieval.metrics if metric.name == "mrr"} == {1.0}


def test_the_analysis_is_json_without_nan(analysis: Analysis) -> None:
    told = json.loads(json.dumps(asdict(analysis), allow_nan=False))
    assert told["primary"]["verdict"] == "BETTER"
    assert told["settings"]["primary"] == {"arm": "raft-1000", "criterion": "accuracy"}


def test_the_same_trial_in_another_order_gives_the_same_analysis(analysis: Analysis) -> None:
    asked, contestants, answers, judgements, hits, gold = trial()
    accuracy = [judgement for judgement in judgements if judgement.criterion == "accuracy"]
    others = [judgement for judgement in judgements if judgement.criterion != "accuracy"]
    again = analyse(asked[::-1], contestants, answers[::-1], accuracy[::-1] + others[::-1], hits=hits[::-1], gold=gold, settings=SETTINGS)
    assert again == analysis


def test_another_seed_gives_other_draws_but_the_same_means(analysis: Analysis) -> None:
    other = analysed(replace(SETTINGS, seed=6))
    assert other.primary.difference == analysis.primary.difference
    assert other.primary.interval != analysis.primary.interval


def test_adding_an_arm_changes_no_other_contrast_but_for_the_correction(analysis: Analysis) -> None:
    asked, contestants, answers, judgements, hits, gold = trial()
    fewer = [contestant for contestant in contestants if contestant.arm != "closed"]
    kept = [judgement for judgement in judgements if judgement.contestant != "closed"]
    smaller = analyse(asked, fewer, answers, kept, hits=hits, gold=gold, settings=SETTINGS)
    assert smaller.primary == analysis.primary
    intervals = {(contrast.arm, contrast.criterion): contrast.interval for contrast in analysis.contrasts}
    for contrast in smaller.contrasts:
        assert contrast.interval is not None
        full = intervals[contrast.arm, contrast.criterion]
        assert full is not None
        assert (contrast.interval.low, contrast.interval.high) == pytest.approx((full.low, full.high), abs=1e-12)


def test_too_few_clusters_end_inconclusive_with_the_reason() -> None:
    few = analysed(items=8)
    assert few.clusters == 4
    assert few.primary.interval is None
    assert few.primary.verdict is Verdict.INCONCLUSIVE
    assert few.primary.notes[0] == "no interval: 4 clusters with paired items, 6 are needed at this level"
    assert few.primary.need is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"control": "bass"}, "no arm is called 'bass': name one of base"),
        ({"primary": Primary("nobody", "accuracy")}, "no arm is called 'nobody'"),
        ({"primary": Primary("base", "accuracy")}, "compares 'base' with itself"),
        ({"primary": Primary("closed", "style")}, "nothing was judged on 'style': name one of accuracy, completeness"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"alpha": 5.0}, "alpha is 5.0"),
        ({"bootstrap": 10}, "bootstrap is 10"),
    ],
)
def test_settings_that_do_not_fit_the_trial_are_refused_with_what_to_do(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        analysed(replace(SETTINGS, **change), items=8)  # type: ignore[arg-type]  # one field at a time, of its own type
