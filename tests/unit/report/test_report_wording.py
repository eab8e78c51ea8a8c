"""Plain words: each verdict says what it allows, and nothing that weakens a result goes unsaid."""

from dataclasses import replace

import pytest
from report_trials import rubric, trial

from flows.analysis.bootstrap import Interval
from flows.analysis.verdict import Verdict
from flows.report import formats
from flows.report.content import TrialReport, gate_passes
from flows.report.wording import caveats, judge_label, meaning


def titles(report: TrialReport) -> set[str]:
    return {caveat.title for caveat in caveats(report)}


@pytest.mark.parametrize(
    ("verdict", "said", "gate"),
    [
        (Verdict.BETTER, "may replace base", True),
        (Verdict.NON_INFERIOR, "not shown to be better", True),
        (Verdict.WORSE, "should not replace base", False),
        (Verdict.INCONCLUSIVE, "neither that raft-1000 may replace base nor that it may not", False),
    ],
)
def test_each_verdict_says_what_it_allows(report: TrialReport, verdict: Verdict, said: str, gate: bool) -> None:
    contrast = replace(report.analysis.primary, verdict=verdict)
    assert said in meaning(contrast, report.analysis.settings)
    assert gate_passes(contrast) is gate


def test_non_inferior_but_lower_is_said(report: TrialReport) -> None:
    contrast = replace(report.analysis.primary, verdict=Verdict.NON_INFERIOR, below_control=True)
    assert "does score lower than base" in meaning(contrast, report.analysis.settings)


def test_the_reference_judge_is_called_no_llm_and_a_model_by_its_name(report: TrialReport) -> None:
    assert judge_label(report) == "reference metrics, no LLM (reference/v1)"
    assert "No language model judged" in titles(report)
    model = replace(report, rubrics=[rubric("accuracy", "ENGINE_OPENAI")])
    assert judge_label(model) == "judge-large, samples, 3 runs an answer"
    assert "No language model judged" not in titles(model)
    assert "Judge's family unknown" in titles(model)


def test_passages_that_the_encoder_cuts_are_said_where_it_is_asked(report: TrialReport) -> None:
    counts = {**report.counts, "passages_cut": 3, "encoder_max_tokens": 254}

    def said(mode: str) -> list[str]:
        changed = replace(report, counts=counts, spec={**report.spec, "retrieval": {"mode": mode}})
        return [caveat.text for caveat in caveats(changed) if caveat.title == "Passages too long for the encoder"]

    assert "have more than the 254 tokens" in said("hybrid")[0]
    assert said("lexical") == []
    assert "Passages too long for the encoder" not in titles(replace(report, counts={**counts, "passages_cut": 0}))


def test_everything_that_weakens_this_trial_is_listed(report: TrialReport) -> None:
    assert titles(report) == {
        "Primary contrast",
        "Few questions",
        "Leaks found",
        "Evidence not found",
        "Rows left out",
        "No language model judged",
        "Missing judgements",
        "One training seed",
        "Failed answers",
        "Answers cut off",
        "Passages left out",
        "Training examples too long",
        "Answer length differs",
    }
    assert "Few clusters" in titles(trial(count=20))


def test_an_arm_that_several_models_of_a_provider_answered_is_named(report: TrialReport) -> None:
    first, *others = report.analysis.arms

    def with_snapshots(*found: tuple[str, int]) -> TrialReport:
        arm = replace(first, usage=replace(first.usage, snapshots=found))
        return replace(report, analysis=replace(report.analysis, arms=(arm, *others)))

    assert titles(with_snapshots(("gpt-1-may", 60))) == titles(report)
    (said,) = (
        one for one in caveats(with_snapshots(("gpt-1-may", 40), ("gpt-1-june", 20))) if one.title == "The provider changed its model"
    )
    assert "base: gpt-1-may 40, gpt-1-june 20" in said.text


def test_what_did_not_happen_is_not_listed(report: TrialReport) -> None:
    clean = replace(
        report,
        leaks=[],
        adapters=[{**adapter, "truncated": 0} for adapter in report.adapters],
        counts={**report.counts, "evidence_unmapped": 0, "rows_skipped": {}, "bad_rows": []},
    )
    assert not titles(clean) & {"Leaks found", "Training examples too long", "Evidence not found", "Rows left out"}


def test_missing_judgements_are_counted_with_their_reasons(report: TrialReport) -> None:
    missing = sum(judgement.score is None for judgement in report.judgements)
    text = next(caveat.text for caveat in caveats(report) if caveat.title == "Missing judgements")
    assert text.startswith(f"{missing} of {len(report.judgements):,} gave no score (unparsed {missing}). By arm: base ")


def test_numbers_use_a_true_minus_and_never_show_minus_zero() -> None:
    assert formats.number(-1.234) == "\u22121.23"
    assert formats.number(-0.001) == "0.00"
    assert formats.interval(Interval(-0.5, 0.25, 0.95)) == "[\u22120.50, 0.25]"


@pytest.mark.parametrize(
    "shown",
    [
        formats.number,
        formats.interval,
        formats.percent,
        formats.whole,
        formats.duration,
        formats.money,
        formats.probability,
        formats.significant,
    ],
)
def test_a_missing_value_is_a_dash_never_zero(shown: object) -> None:
    assert callable(shown)
    assert shown(None) == formats.MISSING


def test_small_values_are_not_rounded_to_zero() -> None:
    assert formats.probability(0.0004) == "< 0.001"
    assert formats.money(0.0004) == "0.0004 USD"
    assert formats.money(0.0) == "0.00 USD"
    assert formats.money(1.5, unpriced=2) == "at least 1.50 USD"
    assert formats.significant(2.1e-7) == "2.1e\u221207"


def test_durations_read_as_people_say_them() -> None:
    assert [formats.duration(seconds) for seconds in (3.21, 59.99, 300, 7500)] == ["3.2 s", "60.0 s", "5 min", "2 h 5 min"]
