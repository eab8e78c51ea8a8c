"""Charts of a retrieval study's page. Knows the analysis, neither the page nor how a drawing is made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import altair as alt

from flows.analysis.retrieval_study import StudyAnalysis
from flows.report.drawing import (
    ACCENT,
    INK,
    LETTER,
    NARROW,
    SOFT,
    Figure,
    Rows,
    across,
    chart_of,
    domain_of,
    ends_of,
    figure_of,
    series_of,
    upright,
)
from flows.report.formats import interval, number, signed

LINES = 6
"""Conditions that colours and shapes tell apart in one drawing of lines."""


def quality(analysis: StudyAnalysis) -> Figure:
    """The main measure of every condition with its interval."""
    best = analysis.best.name
    rows: Rows = []
    for condition in analysis.conditions:
        metric = condition.metric("ndcg", analysis.depth)
        rows.append(
            {
                "name": condition.name,
                "role": "best" if condition.name == best else "other",
                "text": f"{number(metric.mean, 3)} {interval(metric.interval, 3)}",
                "value": metric.mean if condition.queries else None,
                **ends_of(metric.interval),
            }
        )
    title = f"nDCG@{analysis.depth}"
    return figure_of(f"{title} of every condition, with intervals.", *_points(rows, title, []))


def differences(analysis: StudyAnalysis) -> Figure | None:
    """What every other condition adds to the first or takes from it; None when there is no other."""
    if not analysis.differences:
        return None
    rows: Rows = [
        {
            "name": one.condition,
            "role": "sure" if one.sure else "other",
            "text": f"{signed(one.mean, 3)} {interval(one.interval, 3)}",
            "value": one.mean,
            **ends_of(one.interval),
        }
        for one in analysis.differences
    ]
    title = f"nDCG@{analysis.depth}: difference from the first condition"
    return figure_of(f"{title}, {analysis.conditions[0].name}, with intervals.", *_points(rows, title, [0.0]))


def _points(rows: Rows, title: str, lines: Sequence[float]) -> tuple[alt.LayerChart | alt.FacetChart, alt.Step]:
    """A point and its interval a row, the name and the figures above it, and upright lines."""
    domain = domain_of([*(row[key] for row in rows for key in ("value", "low", "high")), *lines])
    x = partial(across, domain, title)
    # By place, not by name: an encoder's name is the user's, and a sorted list of names becomes a part of an expression.
    rows = [{**row, "place": place} for place, row in enumerate(rows)]
    y = alt.Y("place:O", axis=None)
    marked = alt.Scale(domain=["best", "sure", "other"], range=[ACCENT, ACCENT, INK])
    base = chart_of(rows).encode(y=y, color=alt.Color("role:N", legend=None, scale=marked))
    # A name that is too long for the drawing is cut; fonts of browsers are wider than the one it is measured by.
    # Name and figures share a line where the longest of each fit a phone; else they take one each.
    stacked = LETTER * (max(len(row["name"]) for row in rows) + max(len(row["text"]) for row in rows)) > NARROW
    figures: dict[str, Any] = {"x": alt.value(0 if stacked else "width"), "text": "text:N"}
    layers = [
        chart_of([{"at": line} for line in lines]).mark_rule(color=SOFT).encode(x=x("at")),
        base.mark_rule(strokeWidth=4, opacity=0.5).encode(x=x("low"), x2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=x("value")),
        chart_of(rows)
        .mark_text(align="left", dy=-30 if stacked else -15, fontWeight="bold", limit=alt.expr("0.8 * width"))
        .encode(x=alt.value(0), y=y, text="name:N"),
        base.mark_text(align="left" if stacked else "right", dy=-15).encode(**figures),
    ]
    return alt.layer(*(layers if lines else layers[1:])), alt.Step(60 if stacked else 46)


def depths(analysis: StudyAnalysis) -> Figure | None:
    """Recall over the number of passages; None where one depth makes no line or there are more conditions than can be told apart."""
    conditions = analysis.conditions
    ks = sorted({metric.k for condition in conditions for metric in condition.metrics})
    if len(ks) < 2 or len(conditions) > LINES:
        return None
    rows: Rows = [
        {
            "condition": condition.name,
            # Conditions stand side by side at a depth.
            "k": ks.index(metric.k) + 0.08 * (place - (len(conditions) - 1) / 2),
            "mean": metric.mean if condition.queries else None,
            **ends_of(metric.interval),
        }
        for place, condition in enumerate(conditions)
        for metric in condition.metrics
        if metric.name == "recall"
    ]
    names = [condition.name for condition in conditions]
    color, shape = series_of(names, "condition", alt.Legend(columns=2 if LETTER * max(map(len, names)) < NARROW / 3 else 1, labelLimit=300))
    axis = alt.Axis(values=list(range(len(ks))), labelExpr=f"{ks}[round(datum.value)]", grid=False)
    x = alt.X("k:Q", title="first k found", axis=axis, scale=alt.Scale(domain=[-0.4, len(ks) - 0.6], nice=False))
    least, most = domain_of([row[key] for row in rows for key in ("mean", "low", "high")])
    y = partial(upright, [max(0.0, least), min(1.0, most)], "recall")
    base = chart_of(rows).encode(x=x, color=color)
    layers = [
        base.mark_rule(strokeWidth=3, opacity=0.4).encode(y=y("low"), y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=y("mean")),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=y("mean"), shape=shape),
    ]
    return figure_of("Recall of every condition over the number of passages.", alt.layer(*layers), 260)
