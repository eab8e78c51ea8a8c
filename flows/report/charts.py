"""Charts of a trial's page. Knows the analysis, neither the page nor how a drawing is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import altair as alt

from flows.analysis.analyse import Analysis
from flows.analysis.contrasts import Contrast
from flows.analysis.summary import Curve
from flows.analysis.verdict import Verdict
from flows.report.drawing import (
    ACCENT,
    INK,
    LETTER,
    NARROW,
    ROW,
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
from flows.report.formats import effect_text

_VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    Verdict.BETTER: ("var(--better)", "triangle-up"),
    Verdict.NON_INFERIOR: ("var(--non-inferior)", "circle"),
    Verdict.WORSE: ("var(--worse)", "triangle-down"),
    Verdict.INCONCLUSIVE: ("var(--inconclusive)", "diamond"),
}


def scores(analysis: Analysis, criterion: str) -> Figure:
    """Mean score of every arm with its interval; small ticks are training seeds."""
    rows: Rows = []
    seeds: Rows = []
    for arm in analysis.arms:
        score = next(entry for entry in arm.scores if entry.criterion == criterion)
        role = "control" if arm.arm == analysis.settings.control else "primary" if arm.arm == analysis.primary.arm else "other"
        rows.append({"arm": arm.arm, "role": role, "mean": score.mean.value, **ends_of(score.mean.interval)})
        seeds += [{"arm": arm.arm, "seed_mean": entry.value} for entry in score.seeds if entry.value is not None]
    order = [row["arm"] for row in rows]
    domain = domain_of([row[key] for row in rows for key in ("mean", "low", "high")] + [row["seed_mean"] for row in seeds])
    color = alt.Color("role:N", legend=None, scale=alt.Scale(domain=["control", "primary", "other"], range=[SOFT, ACCENT, INK]))
    y = alt.Y("arm:N", sort=order, title=None)
    x = partial(across, domain, f"mean {criterion}")
    base = chart_of(rows).encode(y=y, color=color)
    layers = [
        base.mark_rule(strokeWidth=3, opacity=0.45).encode(x=x("low"), x2="high:Q"),
        chart_of(seeds).mark_tick(thickness=1.5, size=13, color=SOFT).encode(y=y, x=x("seed_mean")),
        base.mark_point(filled=True, size=75, opacity=1).encode(x=x("mean")),
    ]
    return figure_of(f"Mean {criterion} of every arm with its interval.", alt.layer(*layers), alt.Step(ROW))


def forest(contrasts: Sequence[Contrast], margin: float, *, primary_only: bool = False) -> Figure:
    """Differences from the control with their intervals: thick at the level of one contrast, thin for all together; the band is the
    margin."""
    rows: Rows = [
        {
            "arm": contrast.arm,
            "verdict": contrast.verdict.value,
            "title": contrast.arm + (" (primary)" if contrast.primary and not primary_only else ""),
            "text": f"{contrast.verdict.replace('_', '-').lower()}  {effect_text(contrast, margin)}",
            "difference": contrast.difference,
            **ends_of(contrast.interval),
            **{f"all_{end}": value for end, value in ends_of(contrast.simultaneous).items()},
        }
        for contrast in contrasts
    ]
    ends = [row[key] for row in rows for key in ("difference", "low", "high", "all_low", "all_high")]
    domain = domain_of([*ends, 0.0, -margin, margin])
    first = contrasts[0]
    color = alt.Color("verdict:N", legend=None, scale=alt.Scale(domain=list(_VERDICTS), range=[entry[0] for entry in _VERDICTS.values()]))
    shape = alt.Shape("verdict:N", legend=None, scale=alt.Scale(domain=list(_VERDICTS), range=[entry[1] for entry in _VERDICTS.values()]))
    y = alt.Y("arm:N", sort=[row["arm"] for row in rows], axis=None)
    x = partial(across, domain, f"{first.criterion}: difference from {first.control}")
    base = chart_of(rows).encode(y=y, color=color)
    edges = [{"edge": 0.0, "dash": "zero"}, {"edge": -margin, "dash": "margin"}]
    dash = alt.StrokeDash("dash:N", legend=None, scale=alt.Scale(domain=["zero", "margin"], range=[[1, 0], [4, 3]]))
    layers = [
        chart_of([{"from": -margin, "to": 0.0}]).mark_rect(color="var(--band)", opacity=1).encode(x=x("from"), x2="to:Q"),
        chart_of(edges).mark_rule(color=SOFT).encode(x=x("edge"), strokeDash=dash),
        base.mark_rule(strokeWidth=1).encode(x=x("all_low"), x2="all_high:Q"),
        base.mark_rule(strokeWidth=4, opacity=0.5).encode(x=x("low"), x2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=x("difference"), shape=shape),
    ]
    row = 36
    if not primary_only:
        # Arm and effect share a line where the longest of each fit a phone; else they take one each.
        stacked = LETTER * (max(len(entry["title"]) for entry in rows) + max(len(entry["text"]) for entry in rows)) > NARROW
        row = 60 if stacked else 46
        effect = {"x": alt.value(0 if stacked else "width"), "text": "text:N"}
        layers += [
            chart_of(rows)
            .mark_text(align="left", dy=-30 if stacked else -15, fontWeight="bold")
            .encode(x=alt.value(0), y=y, text="title:N"),
            base.mark_text(align="left" if stacked else "right", dy=-15).encode(**effect),
        ]
    label = f"Difference of each arm from {first.control} on {first.criterion}, with intervals and the margin."
    return figure_of(label, alt.layer(*layers), alt.Step(row))


def curve(curves: Sequence[Curve], analysis: Analysis) -> Figure:
    """Mean score over training size for one criterion; hollow points are single training seeds, the dashed line is the control."""
    criterion = curves[0].criterion
    seeds = {
        (arm.arm, entry.seed): entry.value
        for arm in analysis.arms
        for score in arm.scores
        if score.criterion == criterion
        for entry in score.seeds
    }
    control = next(arm for arm in analysis.arms if arm.arm == analysis.settings.control)
    level = next(score.mean.value for score in control.scores if score.criterion == criterion)
    rows: Rows = []
    single: Rows = []
    for place, line in enumerate(curves):
        for point in line.points:
            # Families stand side by side at a size: a shift of a few per cent on the logarithmic axis.
            where = {"family": line.family, "size": point.size * 1.05 ** (place - (len(curves) - 1) / 2)}
            rows.append({**where, "mean": point.mean.value, **ends_of(point.mean.interval)})
            single += [{**where, "seed_mean": value} for (arm, _), value in seeds.items() if arm == point.arm and value is not None]
    sizes = sorted({point.size for line in curves for point in line.points})
    domain = domain_of([row[key] for row in rows for key in ("mean", "low", "high")] + [row["seed_mean"] for row in single] + [level])
    color, shape = series_of([line.family for line in curves], "family")
    reach = alt.Scale(type="log", domain=[sizes[0] / 1.25, sizes[-1] * 1.25], nice=False)
    x = alt.X("size:Q", scale=reach, title="training questions", axis=alt.Axis(values=sizes, format="d", grid=False))
    y = partial(upright, domain, f"mean {criterion}")
    base = chart_of(rows).encode(x=x, color=color)
    layers = [
        chart_of([{"level": level}]).mark_rule(color=SOFT, strokeDash=[4, 3]).encode(y=y("level")),
        chart_of([{"level": level, "name": f"{control.arm} (control)"}])
        .mark_text(align="right", dy=-7, color=SOFT)
        .encode(x=alt.value("width"), y=y("level"), text="name:N"),
        base.mark_rule(strokeWidth=3, opacity=0.4).encode(y=y("low"), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y("mean")),
        chart_of(single).mark_point(size=28, filled=False, strokeWidth=1.2).encode(x=x, y=y("seed_mean"), color=color),
        base.mark_point(filled=True, size=80, opacity=1).encode(y=y("mean"), shape=shape),
    ]
    return figure_of(f"Mean {criterion} over training size.", alt.layer(*layers), 260)


def length(analysis: Analysis) -> Figure:
    """Words in an answer, mean by arm."""
    rows: Rows = [{"arm": arm.arm, "words": arm.usage.words_mean} for arm in analysis.arms]
    y = alt.Y("arm:N", sort=[arm.arm for arm in analysis.arms], title=None)
    x = alt.X("words:Q", title="words in an answer, mean", axis=alt.Axis(tickCount=5))
    bars = chart_of(rows).mark_bar(color=ACCENT, size=12, opacity=0.75).encode(y=y, x=x)
    return figure_of("Mean words in an answer by arm.", alt.layer(bars), alt.Step(ROW))


def abstention(analysis: Analysis) -> Figure:
    """How often each arm abstained, apart for questions that have an answer and that have none."""
    named = (("has an answer", "rate_answerable"), ("has none", "rate_unanswerable"))
    rows = [{"arm": arm.arm, "question": name, "rate": getattr(arm.abstention, field)} for arm in analysis.arms for name, field in named]
    shown = [name for name, field in named if any(getattr(arm.abstention, field) is not None for arm in analysis.arms)]
    color, shape = series_of(shown, "question")
    y = alt.Y("arm:N", sort=[arm.arm for arm in analysis.arms], title=None, axis=alt.Axis(grid=True))
    axis = alt.Axis(tickCount=5, format=".0%", grid=False)
    x = alt.X("rate:Q", scale=alt.Scale(domain=[0, 1]), title="abstained, where the question \u2026", axis=axis)
    base = chart_of([row for row in rows if row["question"] in shown]).encode(y=y, x=x, color=color, shape=shape)
    points = base.mark_point(filled=True, size=75, opacity=0.9).encode(yOffset="question:N")
    return figure_of("Share of answers in which each arm abstained.", alt.layer(points), alt.Step(ROW / 2))


def retrieval(analysis: Analysis) -> Figure | None:
    """Recall, reciprocal rank and nDCG over depth, with intervals; None without gold passages."""
    if analysis.retrieval is None:
        return None
    names = {"recall": "recall", "mrr": "MRR", "ndcg": "nDCG"}
    depths = sorted({metric.k for metric in analysis.retrieval.metrics})
    places = {name: place for place, name in enumerate(names)}
    rows: Rows = [
        {
            "metric": names[metric.name],
            "k": depths.index(metric.k) + 0.08 * (places[metric.name] - 1),
            "mean": metric.mean,
            **ends_of(metric.interval),
        }
        for metric in analysis.retrieval.metrics
    ]
    color, shape = series_of(list(names.values()), "metric")
    expression = f"{depths}[round(datum.value)]"
    axis = alt.Axis(values=list(range(len(depths))), labelExpr=expression, grid=False)
    x = alt.X("k:Q", title="first k passages", axis=axis, scale=alt.Scale(domain=[-0.3, len(depths) - 0.7], nice=False))
    y = alt.Y("mean:Q", scale=alt.Scale(domain=[0, 1]), title=None, axis=alt.Axis(tickCount=5, format=".1f"))
    base = chart_of(rows).encode(x=x, color=color)
    layers = [
        base.mark_rule(strokeWidth=3, opacity=0.4).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=y),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=y, shape=shape),
    ]
    return figure_of("Retrieval quality over the number of passages.", alt.layer(*layers), 240)
