"""The page of a retrieval study: one HTML file that needs nothing else. Knows what stands where."""

from __future__ import annotations

from typing import Any

import yaml

from flows.report import study_charts, study_wording
from flows.report.frame import assets, environment
from flows.report.study_content import StudyReport


def render_study(report: StudyReport) -> str:
    """The page as HTML."""
    analysis = report.analysis
    depths = sorted({metric.k for condition in analysis.conditions for metric in condition.metrics})
    return (
        environment()
        .get_template("study.html.jinja")
        .render(
            report=report,
            analysis=analysis,
            measure=f"nDCG@{analysis.depth}",
            sentence=study_wording.sentence(analysis),
            rivals=study_wording.rivals(analysis),
            caveats=study_wording.caveats(report),
            rows=[
                {"condition": condition, "row": row, "shown": condition.metric("recall", condition.k)}
                for condition, row in zip(analysis.conditions, report.conditions, strict=True)
            ],
            depths=depths,
            matrix=_matrix(report),
            figures={
                "quality": study_charts.quality(analysis),
                "differences": study_charts.differences(analysis),
                "depths": study_charts.depths(analysis),
            },
            lines=study_charts.LINES,
            spec_yaml=yaml.safe_dump(dict(report.spec), sort_keys=False, allow_unicode=True, width=100),
            **assets(),
        )
    )


def _matrix(report: StudyReport) -> list[dict[str, Any]]:
    """Row minus column; None on the diagonal."""
    names = [condition.name for condition in report.analysis.conditions]
    return [{"name": one, "cells": [None if one == other else report.analysis.difference(one, other) for other in names]} for one in names]
