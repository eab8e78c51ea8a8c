"""The result in short, as Markdown: for a terminal, a pull request, an artifact in a UI."""

from __future__ import annotations

import html

from flows.report.content import TrialReport, gate_passes
from flows.report.formats import effect_text, interval, number, percent, probability
from flows.report.wording import judge_label, meaning


def markdown(report: TrialReport) -> str:
    """The result in short: verdict, gate, arms, contrasts."""
    analysis, primary = report.analysis, report.analysis.primary
    margin = analysis.settings.margin
    gate = "pass" if gate_passes(primary) else "fail"
    lines = [f"# {_cell(report.name)}", "", f"**{_cell(primary.sentence)}**", "", _cell(meaning(primary, analysis.settings)), ""]
    lines += [f"- {_cell(note)}" for note in primary.notes] + ([""] if primary.notes else [])
    lines += [f"Gate: **{gate}** · judge: {_cell(judge_label(report))} · run `{report.run_id}`", ""]
    lines += [
        "## Arms",
        "",
        f"| arm | {' | '.join(analysis.criteria)} | words | abstained |",
        "|---|" + "---:|" * (len(analysis.criteria) + 2),
    ]
    for arm in analysis.arms:
        means = [f"{number(score.mean.value)} {interval(score.mean.interval)}" for score in arm.scores]
        lines.append(f"| {_cell(arm.arm)} | {' | '.join(means)} | {number(arm.usage.words_mean, 1)} | {percent(arm.abstention.rate)} |")
    lines += ["", f"## Contrasts with {_cell(analysis.settings.control)}", "", "| arm | criterion | verdict | difference | p (Holm) |"]
    lines.append("|---|---|---|---:|---:|")
    for contrast in analysis.contrasts:
        verdict = contrast.verdict.replace("_", "-").lower() + (" (primary)" if contrast.primary else "")
        cells = [
            _cell(contrast.arm),
            _cell(contrast.criterion),
            verdict,
            effect_text(contrast, margin),
            probability(contrast.p_value_adjusted),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor starts markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
