"""What the figures of a retrieval study mean in plain words. Knows no markup."""

from __future__ import annotations

from flows.analysis.retrieval_study import StudyAnalysis
from flows.report.formats import interval, level, number, plural, signed, whole
from flows.report.study_content import StudyReport
from flows.report.wording import FEW_CLUSTERS, FEW_ITEMS, Caveat


def sentence(analysis: StudyAnalysis) -> str:
    """The result in one sentence: the best condition, and whether it is more than the first by more than chance."""
    best, first = analysis.best, analysis.conditions[0]
    metric = best.metric("ndcg", analysis.depth)
    measured = f"nDCG@{analysis.depth} {number(metric.mean, 3)} {interval(metric.interval, 3)}"
    if len(analysis.conditions) == 1:
        return f"{best.name}: {measured}"
    if best.name == first.name:
        return f"{best.name} finds most: {measured}; no condition is above it"
    against = analysis.difference(best.name, first.name)
    ends = interval(against.interval, 3)
    if against.sure:
        return f"{best.name} finds most: {measured}, {number(against.mean, 3)} {ends} more than {first.name}"
    return f"{best.name} finds most: {measured}, but it is not told apart from {first.name} ({signed(against.mean, 3)} {ends})"


def rivals(analysis: StudyAnalysis) -> tuple[str, ...]:
    """Conditions that these questions do not tell apart from the best."""
    best = analysis.best.name
    others = (condition.name for condition in analysis.conditions if condition.name != best)
    return tuple(name for name in others if not analysis.difference(best, name).sure)


def caveats(report: StudyReport) -> tuple[Caveat, ...]:
    """All that apply to this study."""
    analysis, counts = report.analysis, report.counts
    found = []
    if report.left_out:
        found.append(
            Caveat("Left out", f"{', '.join(report.left_out)}: the retriever has no reranker. Set TUNETRIAL_RERANKER where it runs.")
        )
    found += [Caveat("Note", f"{note}.") for note in report.notes]
    if analysis.without_gold:
        asked = whole(counts["asked"])
        text = f"{whole(analysis.without_gold)} of {asked} questions have nothing known to find; they are not measured."
        found.append(Caveat("Questions without gold", text))
    if analysis.clusters < FEW_CLUSTERS:
        text = f"The {plural(len(analysis.items), 'question')} come from {plural(analysis.clusters, 'cluster')}, the independent units. "
        found.append(Caveat("Few clusters", f"{text}Below {FEW_CLUSTERS}, intervals are only roughly right."))
    elif len(analysis.items) < FEW_ITEMS:
        found.append(Caveat("Few questions", f"Only {len(analysis.items)} questions were measured; small differences cannot be seen."))
    if len(analysis.pairs) > 1:
        sure = level(analysis.alpha)
        text = f"Each {sure} interval holds for its own pair. Of {len(analysis.pairs)} pairs some may exclude 0 by chance alone."
        found.append(Caveat("Many comparisons", text))
    if counts["bad_rows"]:
        found.append(Caveat("Rows left out", f"{plural(len(counts['bad_rows']), 'broken row')} of {whole(counts['rows_read'])} read."))
    return tuple(found)
