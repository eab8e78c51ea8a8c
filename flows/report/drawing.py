"""How charts of a page are drawn: static SVG by Vega-Altair, in two widths. Knows no chart.

Each is drawn twice, for a wide screen and for a phone; colours are CSS variables, so one drawing serves light and dark. Every chart stands
beside a table with the same numbers, so its own elements carry no labels for screen readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import vl_convert
from markupsafe import Markup

WIDE, NARROW = 520, 340
"""Width in CSS pixels: half of the page on a wide screen, all of it on a phone."""
ROW = 26
LETTER = 6.5
"""Mean width of a letter in the charts' text."""

INK, SOFT, _LINE, ACCENT = "var(--ink)", "var(--soft)", "var(--line)", "var(--accent)"
_SERIES = tuple(f"var(--series-{place})" for place in range(1, 7))
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "Helvetica, Arial, sans-serif",
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": _LINE,
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
        "titlePadding": 8,
    },
    "axisY": {"labelLimit": 190},
    "legend": {
        "labelColor": INK,
        "titleColor": SOFT,
        "labelFontSize": 12,
        "orient": "top",
        "title": None,
        "symbolSize": 70,
        "symbolOpacity": 1,
        "labelLimit": 160,
        "offset": 4,
        "padding": 2,
    },
    "text": {"color": INK, "fontSize": 12},
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart in both widths; `label` says what it shows."""

    label: str
    wide: Markup
    narrow: Markup


Rows = list[dict[str, Any]]


def chart_of(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """A chart of these rows."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def across(domain: Sequence[float], title: str, field: str) -> alt.X:
    """A field on the common axis: layers that name another domain, or none, would widen it, to 0 for example."""
    return alt.X(f"{field}:Q", scale=alt.Scale(domain=domain, nice=False), title=title, axis=alt.Axis(tickCount=5))


def upright(domain: Sequence[float], title: str, field: str) -> alt.Y:
    """As `across`, upright."""
    return alt.Y(f"{field}:Q", scale=alt.Scale(domain=domain, nice=False), title=title, axis=alt.Axis(tickCount=5))


def series_of(
    names: Sequence[str], field: Literal["family", "question", "metric", "condition"], legend: alt.Legend | None = None
) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of series: both tell them apart, so that neither is needed alone. After six they repeat."""
    repeats = range(len(names))
    colors, shapes = [_SERIES[place % 6] for place in repeats], [_SHAPES[place % 6] for place in repeats]
    legend = alt.Legend() if legend is None else legend
    return (
        alt.Color(f"{field}:N", legend=legend, scale=alt.Scale(domain=list(names), range=colors)),
        alt.Shape(f"{field}:N", legend=legend, scale=alt.Scale(domain=list(names), range=shapes)),
    )


def ends_of(interval: Any) -> dict[str, float | None]:
    """`low` and `high` of an interval; missing without one."""
    return {"low": None, "high": None} if interval is None else {"low": interval.low, "high": interval.high}


def domain_of(values: Sequence[float | None]) -> list[float]:
    """From the least to the greatest value, with a little room at both ends."""
    known = [value for value in values if value is not None]
    if not known:
        return [0.0, 1.0]
    room = 0.06 * (max(known) - min(known)) or 0.5
    return [min(known) - room, max(known) + room]


def figure_of(label: str, chart: alt.LayerChart | alt.FacetChart, height: float | alt.Step) -> Figure:
    """The chart in both widths."""
    spec = chart.properties(height=height).to_dict()
    return Figure(label, _svg(spec, WIDE), _svg(spec, NARROW))


def _svg(spec: Mapping[str, Any], width: int) -> Markup:
    """Static SVG of that width, labels included. Vega escapes the texts; nothing is fetched."""
    sized = {
        **spec,
        "width": width,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"left": 6, "right": 8, "top": 4, "bottom": 4},
    }
    svg = vl_convert.vegalite_to_svg(sized, config=_CONFIG, allowed_base_urls=[])
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))  # noqa: S704  # made by Vega, which escapes every text
