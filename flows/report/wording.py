"""What the numbers mean in plain words: the verdict, the judge, and what a reader should be wary of. Knows no markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flows.analysis.contrasts import Contrast
from flows.analysis.settings import AnalysisSettings
from flows.analysis.summary import ArmSummary
from flows.analysis.verdict import Verdict
from flows.report.content import TrialReport
from flows.report.formats import level, number, percent, plural, whole

FEW_CLUSTERS = 30
"""Below this the variance itself is poorly known (Cameron & Miller 2015, Journal of Human Resources 50(2), section VI)."""
FEW_ITEMS = 100
_LENGTH_RATIO = 1.5
_CLASSES = 4
"""Of knowledge; a family that keeps all of them leaves no question out."""


@dataclass(frozen=True, slots=True)
class Caveat:
    """A reason to read a result with care."""

    title: str
    text: str


def meaning(contrast: Contrast, settings: AnalysisSettings) -> str:
    """The primary verdict for a reader without statistics."""
    arm, control, criterion = contrast.arm, contrast.control, contrast.criterion
    margin = f"{settings.margin:g} points"
    sure = level(settings.alpha)
    if contrast.verdict is Verdict.BETTER:
        return (
            f"On these {contrast.items} questions {arm} scored higher than {control} on {criterion}, and by more than chance explains: the "
            f"whole {sure} interval lies above zero. On this criterion {arm} may replace {control}."
        )
    if contrast.verdict is Verdict.NON_INFERIOR:
        said = (
            f"A loss of {margin} or more on {criterion}, the margin fixed before the trial, is ruled out at {sure}. {arm} may replace "
            f"{control} if it brings something else, such as lower cost; it is not shown to be better."
        )
        return f"{said} It does score lower than {control}, by less than the margin." if contrast.below_control else said
    if contrast.verdict is Verdict.WORSE:
        return (
            f"{arm} scored lower than {control} on {criterion}, and by more than chance explains: the whole {sure} interval lies below "
            f"zero and reaches the margin of {margin}. {arm} should not replace {control}."
        )
    if contrast.interval is None:
        return f"There are too few independent questions for an interval, so nothing can be concluded about {arm} and {control}."
    return (
        f"The data allow both: a loss of {margin} or more on {criterion}, and no loss at all. So this trial shows neither that {arm} may "
        f"replace {control} nor that it may not."
    )


def judge_is_reference(report: TrialReport) -> bool:
    """Whether any criterion was scored by reference metrics instead of a language model."""
    return any(rubric["details"]["engine"] == "ENGINE_REFERENCE" for rubric in report.rubrics)


def judge_label(report: TrialReport) -> str:
    """Who judged: `reference metrics, no LLM (reference/v1)`, or the language model with its mode and runs."""
    labels = []
    for rubric in report.rubrics:
        details = rubric["details"]
        if details["engine"] == "ENGINE_REFERENCE":
            labels.append(f"reference metrics, no LLM ({details['model']})")
        else:
            mode = details["mode"].removeprefix("SCORE_MODE_").lower().replace("_", " ")
            runs = f"{rubric['run_count']} run{'s' if rubric['run_count'] != 1 else ''} an answer"
            labels.append(f"{details['model']}, {mode}, {runs}")
    return "; ".join(dict.fromkeys(labels))


def caveats(report: TrialReport) -> tuple[Caveat, ...]:
    """All that apply to this trial: about its data, its judge, its arms."""
    return (*_data_caveats(report), *_judge_caveats(report), *_arm_caveats(report))


def _data_caveats(report: TrialReport) -> Iterator[Caveat]:
    analysis, counts = report.analysis, report.counts
    for note in analysis.primary.notes:
        yield Caveat("Primary contrast", f"{note}.")
    if analysis.clusters < FEW_CLUSTERS:
        text = f"The {analysis.items} questions come from {analysis.clusters} documents, which are the independent units. "
        yield Caveat("Few clusters", f"{text}Below {FEW_CLUSTERS}, intervals are only roughly right.")
    if analysis.items < FEW_ITEMS:
        least = number(analysis.primary.detectable) if analysis.primary.detectable else ""
        detail = f" A true difference below {least} would often be missed." if least else ""
        yield Caveat("Few questions", f"Only {analysis.items} questions were asked.{detail}")
    if report.leaks:
        pools = sorted({f"{leak['left_pool']} and {leak['right_pool']}" for leak in report.leaks})
        yield Caveat("Leaks found", f"{plural(len(report.leaks), 'question')} in two pools ({', '.join(pools)}), listed under Data.")
    if counts["evidence_unmapped"]:
        share = percent(counts["evidence_unmapped"] / counts["evidence"])
        text = (
            f"{whole(counts['evidence_unmapped'])} of {whole(counts['evidence'])} pieces of evidence ({share}) were found in no passage; "
        )
        yield Caveat("Evidence not found", f"{text}retrieval quality is measured on the others.")
    if counts.get("passages_cut") and report.spec.get("retrieval", {}).get("mode") != "lexical":
        share = f"{whole(counts['passages_cut'])} of {whole(counts['passages'])} passages"
        text = f"{share} have more than the {whole(counts['encoder_max_tokens'])} tokens that the retrieval encoder reads. "
        yield Caveat("Passages too long for the encoder", f"{text}By meaning they are found by their beginnings only.")
    chosen = [f"{one['family']} ({', '.join(one['keep']).replace('_', ' ')})" for one in report.knowledge if len(one["keep"]) < _CLASSES]
    if chosen:
        text = f"By what its base knows, only some questions were trained on: {'; '.join(chosen)}. "
        always = "Questions that the documents do not answer always are. "
        yield Caveat("Training questions chosen", f"{text}{always}Families that choose otherwise differ in their questions too.")
    skipped = sum(counts["rows_skipped"].values()) + len(counts["bad_rows"])
    if skipped:
        yield Caveat(
            "Rows left out", f"{whole(skipped)} of {whole(counts['rows_read'])} rows read were not used. Reasons stand under Data."
        )


def _judge_caveats(report: TrialReport) -> Iterator[Caveat]:
    if judge_is_reference(report):
        yield Caveat(
            "No language model judged",
            "Scores come from a fixed rule over exact match, token overlap and embedding similarity with the references. A right answer in "
            "words unlike the references scores low.",
        )
    judges = sorted({rubric["details"]["model"] for rubric in report.rubrics if rubric["details"]["engine"] != "ENGINE_REFERENCE"})
    if judges:
        bases = report.spec["models"]
        names = sorted({contestant.model for contestant in report.contestants})
        models = ", ".join(f"{name} ({bases[name]['base'] or bases[name]['model']})" for name in names)
        who = f"Judge: {', '.join(judges)}. Contestants: {models}."
        text = f"{who} Whether they are of one family is not recorded; judges favour their own."
        yield Caveat("Judge's family unknown", text)
    scores = [(arm.arm, score.missing) for arm in report.analysis.arms for score in arm.scores]
    missing = sum(entry.missing for _, entry in scores)
    if missing:
        reasons = _tally((reason.replace("_", " "), times) for _, entry in scores for reason, times in entry.reasons)
        arms = _tally((arm, entry.missing) for arm, entry in scores)
        asked = whole(sum(entry.judgements for _, entry in scores))
        yield Caveat("Missing judgements", f"{whole(missing)} of {asked} gave no score ({reasons}). By arm: {arms}.")


def _tally(entries: Iterable[tuple[str, int]]) -> str:
    """`unparsed 3, refused 1`."""
    counted: Counter[str] = Counter()
    for name, times in entries:
        counted[name] += times
    return ", ".join(f"{name} {whole(times)}" for name, times in counted.items() if times)


def _arm_caveats(report: TrialReport) -> Iterator[Caveat]:
    analysis = report.analysis
    # The primary arm and the control have their own note.
    noted = (analysis.primary.arm, analysis.settings.control)
    once = [arm.arm for arm in analysis.arms if len(arm.seeds) == 1 and arm.arm not in noted]
    if once:
        yield Caveat("One training seed", f"{', '.join(once)}: how much another training would differ is not in the intervals.")
    counted: tuple[tuple[str, str, Callable[[ArmSummary], int]], ...] = (
        ("Failed answers", "gave no text", lambda arm: arm.usage.errors),
        ("Answers cut off", "ran into the token limit", lambda arm: arm.usage.truncated),
        ("Passages left out", "lost passages because the prompt was too long", lambda arm: arm.usage.cut),
    )
    for title, what, of in counted:
        found = [f"{arm.arm} {whole(of(arm))} of {whole(arm.usage.answers)}" for arm in analysis.arms if of(arm)]
        if found:
            yield Caveat(title, f"Answers that {what}: {'; '.join(found)}.")
    several = [f"{arm.arm}: {_tally(arm.usage.snapshots)}" for arm in analysis.arms if len(arm.usage.snapshots) > 1]
    if several:
        text = f"{'; '.join(several)}. These are answers of several models under one name, so the arm is not one model."
        yield Caveat("The provider changed its model", text)
    changed = [(row["name"], row["truncated"], row["masked"]) for row in report.adapters if row["truncated"] or row["masked"]]
    if changed:
        text = "; ".join(f"{name}: {cut} shortened, {masked} without a token to learn from" for name, cut, masked in changed)
        yield Caveat("Training examples too long", f"{text}.")
    control = next(arm for arm in analysis.arms if arm.arm == analysis.settings.control)
    unlike = [f"{arm.arm} {number(ratio, 1)} times" for arm in analysis.arms if (ratio := _length_ratio(arm, control)) is not None]
    if unlike:
        text = f"Compared with {control.arm}, answers are longer or shorter: {', '.join(unlike)}. Scores may follow length."
        yield Caveat("Answer length differs", text)


def _length_ratio(arm: ArmSummary, control: ArmSummary) -> float | None:
    """Mean words against the control's, where that is far from 1."""
    own, other = arm.usage.words_mean, control.usage.words_mean
    if not own or not other:
        return None
    ratio = own / other
    return None if 1 / _LENGTH_RATIO < ratio < _LENGTH_RATIO else ratio
