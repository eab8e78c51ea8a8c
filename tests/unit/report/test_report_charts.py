"""Charts as static SVG in two widths, coloured by the page's variables."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from flows.report import charts, formats
from flows.report.content import TrialReport
from flows.report.drawing import NARROW, WIDE, Figure

DRAWN: dict[str, Callable[[TrialReport], Figure | None]] = {
    "scores": lambda report: charts.scores(report.analysis, "accuracy"),
    "forest": lambda report: charts.forest([one for one in report.analysis.contrasts if one.criterion == "accuracy"], 0.1),
    "curve": lambda report: charts.curve([one for one in report.analysis.curves if one.criterion == "accuracy"], report.analysis),
    "length": lambda report: charts.length(report.analysis),
    "abstention": lambda report: charts.abstention(report.analysis),
    "retrieval": lambda report: charts.retrieval(report.analysis),
}


def drawn(report: TrialReport, name: str) -> Figure:
    figure = DRAWN[name](report)
    assert figure is not None
    return figure


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_fits_a_phone_and_half_a_wide_page(report: TrialReport, name: str) -> None:
    figure = drawn(report, name)
    widths = [float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) for svg in (figure.narrow, figure.wide)]
    assert widths == [NARROW, WIDE]


@pytest.mark.parametrize("name", DRAWN)
def test_colours_are_variables_so_that_one_drawing_serves_light_and_dark(report: TrialReport, name: str) -> None:
    painted = set(re.findall(r'(?:fill|stroke)="([^"]+)"', drawn(report, name).wide))
    assert {color for color in painted if not color.startswith("var(--")} <= {"none", "transparent"}
    assert any(color.startswith("var(--") for color in painted)


def test_the_forest_names_every_arm_with_verdict_and_effect(report: TrialReport) -> None:
    svg = drawn(report, "forest").narrow
    assert "raft-1000 (primary)" in svg
    said = [" ".join(text.split()) for text in re.findall(r"<text[^>]*>([^<]*)", svg)]
    accuracy = [one for one in report.analysis.contrasts if one.criterion == "accuracy"]
    assert [text for text in said if "[" in text] == [
        f"{one.verdict.replace('_', '-').lower()} {formats.effect_text(one, 0.1)}" for one in accuracy
    ]


def test_single_seeds_are_drawn_apart_from_their_mean(report: TrialReport) -> None:
    """Four family sizes; those of raft have two seeds, those of bare one."""
    hollow = re.findall(r'<path[^>]+fill="transparent"|<path[^>]+stroke-width="1.2"', drawn(report, "curve").wide)
    assert len(hollow) == 6


def test_an_arm_without_scores_or_interval_leaves_the_others_drawn(report: TrialReport) -> None:
    first, *others = report.analysis.arms
    score = replace(first.scores[0], mean=replace(first.scores[0].mean, value=None, interval=None))
    figure = charts.scores(replace(report.analysis, arms=(replace(first, scores=(score, *first.scores[1:])), *others)), "accuracy")
    assert "NaN" not in figure.wide
    assert "raft-200" in figure.wide


def test_there_is_no_retrieval_chart_without_gold_passages(report: TrialReport) -> None:
    assert charts.retrieval(replace(report.analysis, retrieval=None)) is None
