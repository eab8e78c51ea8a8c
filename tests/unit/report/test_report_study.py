"""The report of a retrieval study: its page, its tables, its JSON, and its words."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_trials import HOSTILE

from flows.analysis.retrieval_study import Ranking, StudyAnalysis, compare
from flows.records import Item
from flows.report import study_charts, study_wording
from flows.report.drawing import NARROW, WIDE
from flows.report.formats import model, signed
from flows.report.study_content import ConditionRow, StudyReport
from flows.report.study_export import export, machine_readable, read
from flows.report.study_page import render_study

USUAL = ("lexical", "dense", "hybrid", "hybrid + rerank")


def analysis(names: tuple[str, ...] = USUAL, count: int = 80, depths: tuple[int, ...] = (1, 5, 10)) -> StudyAnalysis:
    """Each condition finds the one relevant document a little more often than the one before."""
    rng = np.random.default_rng(1)
    items = [Item(f"q{number:03}", "?", (), f"c{number // 2}") for number in range(count)]
    gains = {item.id: {"right": 1} for item in items}
    luck = rng.random(count)
    rankings = []
    for place, name in enumerate(names):
        ranked = {
            item.id: ["right"] if luck[number] < 0.4 + 0.05 * place else ["wrong", "right"] if luck[number] < 0.8 else ["wrong"]
            for number, item in enumerate(items)
        }
        rankings.append(Ranking(name, 5, ranked, gains))
    found = compare(items, rankings, depths, draws=1000)
    assert found is not None
    return found


def study(found: StudyAnalysis | None = None, **more: Any) -> StudyReport:
    found = found or analysis()
    settings = {"mode": "hybrid", "k": 5, "rerank": False, "encoder": "", "chunk": {"unit": "document", "max_tokens": 200, "parent": None}}
    content: dict[str, Any] = {
        "name": "towns",
        "created": "2026-02-03T10:11:12+00:00",
        "seconds": 4.2,
        "spec": {"name": "towns"},
        "counts": {"rows_read": 90, "rows_skipped": {"not judged": 3}, "bad_rows": [], "items": 80, "asked": 80, "documents": 40},
        "questions": {item: f"Question {item}?" for item in found.items},
        "conditions": [ConditionRow(one.name, settings, "towns-0123", 40, 7.25, 30) for one in found.conditions],
        "left_out": (),
        "notes": (),
        "reranker": "/models/reranker@" + "ab" * 32,
        "inputs": {"files": {"corpus.jsonl": "c0" * 32}, "encoders": {"": ""}},
        "versions": {"python": "3.11.9"},
        "analysis": found,
    }
    return StudyReport(**{**content, **more})


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value and tag != "path"]
        self.links += [found["href"][1:]] if tag == "a" and (found.get("href") or "").startswith("#") else []
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value and not value.startswith("#")]


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere() -> None:
    checker = _Checker()
    checker.feed(render_study(study()))
    assert checker.loaded == []
    assert set(checker.links) <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids))


def test_the_page_shows_every_condition_with_its_figures_and_differences() -> None:
    page = render_study(study())
    found = analysis()
    for condition in found.conditions:
        assert f"{condition.metric('ndcg', 10).mean:.3f}" in page
    for difference in found.pairs:
        assert signed(difference.mean, 3) in page
    assert "reranker@abababab" in page
    assert "NaN" not in page


def test_hostile_names_and_rows_are_escaped() -> None:
    found = analysis(names=("lexical", HOSTILE))
    bad = {"rows_read": 9, "rows_skipped": {HOSTILE: 1}, "bad_rows": [HOSTILE], "items": 80, "asked": 80, "documents": 40}
    page = render_study(study(found, notes=(HOSTILE,), reranker=HOSTILE, counts=bad, name="n", left_out=(HOSTILE,)))
    assert "<img" not in page
    assert "<script>alert" not in page


def test_one_condition_alone_makes_a_page_without_differences() -> None:
    page = render_study(study(analysis(names=("hybrid",))))
    assert 'id="differences"' not in page
    assert "hybrid" in page


def test_many_conditions_have_tables_and_no_lines_that_cannot_be_told_apart() -> None:
    found = analysis(names=tuple(f"hybrid · tokens, max tokens {number} · some/encoder-{number}" for number in range(9)))
    assert study_charts.depths(found) is None
    page = render_study(study(found))
    assert "could not be told apart" in page
    assert "max tokens 8" in page


@pytest.mark.parametrize("draw", [study_charts.quality, study_charts.differences, study_charts.depths])
def test_a_chart_fits_a_phone_and_half_a_wide_page_in_colours_of_the_page(draw: Any) -> None:
    figure = draw(analysis())
    assert [float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) for svg in (figure.narrow, figure.wide)] == [NARROW, WIDE]  # type: ignore[index]
    painted = set(re.findall(r'(?:fill|stroke)="([^"]+)"', figure.wide))
    assert {color for color in painted if not color.startswith("var(--")} <= {"none", "transparent"}


def test_too_few_clusters_for_an_interval_still_make_a_page() -> None:
    page = render_study(study(analysis(count=4)))
    assert "\u2014" in page
    assert "Few clusters" in page


def test_the_folder_holds_page_tables_and_json_that_say_the_same(tmp_path: Path) -> None:
    report = study()
    export(report, tmp_path / "run")
    content = read(tmp_path / "run")
    assert content == json.loads(json.dumps(machine_readable(report)))
    assert content is not None
    with (tmp_path / "run" / "conditions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"] for row in rows] == list(USUAL)
    for row, condition in zip(rows, content["conditions"], strict=True):
        for metric in condition["metrics"]:
            assert float(row[f"{metric['name']}@{metric['k']}"]) == metric["mean"]
        assert row["chunk"] == "unit=document max_tokens=200"
    with (tmp_path / "run" / "differences.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["pairs"]) == 6
    with (tmp_path / "run" / "questions.csv").open() as file:
        questions = list(csv.DictReader(file))
    assert (questions[0]["id"], questions[0]["question"]) == ("q000", "Question q000?")
    mean = sum(float(row["hybrid"]) for row in questions) / len(questions)
    assert mean == pytest.approx(report.analysis.conditions[2].metric("ndcg", 10).mean)


def test_a_folder_that_is_not_finished_or_of_another_version_is_not_read(tmp_path: Path) -> None:
    export(study(), tmp_path)
    content = json.loads((tmp_path / "retrieval.json").read_text())
    (tmp_path / "retrieval.json").write_text(json.dumps({**content, "schema": "tunetrial.retrieval/0"}))
    assert read(tmp_path) is None
    export(study(), tmp_path)
    (tmp_path / "retrieval.html").unlink()
    assert read(tmp_path) is None
    (tmp_path / "retrieval.json").write_text("{")
    assert read(tmp_path) is None
    assert read(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("names", "begins", "says"),
    [
        (("hybrid",), "hybrid: nDCG@10 0.", ""),
        (USUAL, "hybrid + rerank finds most: nDCG@10 0.", "more than lexical"),
    ],
)
def test_the_sentence_says_what_was_found(names: tuple[str, ...], begins: str, says: str) -> None:
    said = study_wording.sentence(analysis(names))
    assert said.startswith(begins)
    assert says in said


def test_the_sentence_does_not_claim_what_chance_explains() -> None:
    few = analysis(("lexical", "dense"), count=20)
    assert "but it is not told apart from lexical" in study_wording.sentence(few)
    assert study_wording.rivals(few) == ("lexical",)


def test_a_model_is_named_in_short() -> None:
    assert model("/some/folder/cross@" + "ab" * 32) == "cross@abababab"
    assert model("owner/cross@0123456789") == "owner/cross@01234567"
    assert model("") == ""
