"""The page: one HTML file that needs nothing else. Knows what stands where; words are `wording`'s, drawings `charts`'.

Everything but the table of questions is there without JavaScript. A content security policy lets only the page's own script run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from flows.report import charts, wording
from flows.report.content import TrialReport, gate_passes
from flows.report.frame import assets, environment
from flows.report.item_data import item_json


def render(report: TrialReport) -> str:
    """The page as HTML."""
    analysis = report.analysis
    head, _, rest = analysis.primary.sentence.partition(": ")
    # What would decide an inconclusive contrast has its own paragraph.
    effect = re.sub(r"(?<!\w)-(?=\d)", "\u2212", rest.partition("; ")[0])
    return (
        environment()
        .get_template("template.html.jinja")
        .render(
            report=report,
            analysis=analysis,
            primary=analysis.primary,
            settings=analysis.settings,
            sentence={"head": head, "effect": effect},
            gate=gate_passes(analysis.primary),
            meaning=wording.meaning(analysis.primary, analysis.settings),
            judge=wording.judge_label(report),
            judge_is_reference=wording.judge_is_reference(report),
            caveats=wording.caveats(report),
            figures=_figures(report),
            spec_yaml=yaml.safe_dump(dict(report.spec), sort_keys=False, allow_unicode=True, width=100),
            items_json=item_json(report),
            **assets("page.js"),
        )
    )


def _figures(report: TrialReport) -> Mapping[str, Any]:
    analysis = report.analysis
    margin = analysis.settings.margin
    by_criterion = {name: [entry for entry in analysis.contrasts if entry.criterion == name] for name in analysis.criteria}
    curves = {name: [entry for entry in analysis.curves if entry.criterion == name] for name in analysis.criteria}
    return {
        "primary": charts.forest([analysis.primary], margin, primary_only=True),
        "scores": [charts.scores(analysis, name) for name in analysis.criteria],
        "forest": [charts.forest(entries, margin) for entries in by_criterion.values()],
        # One size is a point, not a curve.
        "curves": [charts.curve(lines, analysis) for lines in curves.values() if any(len(line.points) > 1 for line in lines)],
        "length": charts.length(analysis),
        "abstention": charts.abstention(analysis),
        "retrieval": charts.retrieval(analysis),
    }
