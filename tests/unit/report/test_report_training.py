"""What a report says of searches for settings and of pairs of answers, on the page and for machines."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from report_trials import HOSTILE

from flows.report.content import TrialReport
from flows.report.export import export, machine_readable
from flows.report.page import render

TRIALS: list[dict[str, Any]] = [
    {"settings": {"rank": 8, "learning_rate": 0.000213456, "dora": True}, "evaluation_loss": 1.23456, "seconds": 61.0, "error": ""},
    {"settings": {"rank": 64, "learning_rate": 0.1, "dora": False}, "evaluation_loss": None, "seconds": 9.0, "error": HOSTILE},
]


@pytest.fixture
def searched(report: TrialReport) -> TrialReport:
    trials = [one | {"trained_tokens": 9, "adapter": "a", "taken": place == 0} for place, one in enumerate(TRIALS)]
    search = {"family": "raft", "size": 1000, "seed": 1, "wanted": 10, "trials": trials}
    pairs = {"family": "better", "source": "../runs/first-3f2a10", "counts": {"pairs": 1200, "pairs on test questions": 12}}
    return replace(report, searches=[search], preferences=[pairs])


def test_every_trial_of_a_search_is_on_the_page_with_what_was_taken(searched: TrialReport) -> None:
    soup = BeautifulSoup(render(searched), "html.parser")
    (table,) = (one for one in soup("table") if one.caption.get_text() == "Settings that were tried, in order")
    rows = [[cell.get_text(strip=True) for cell in row(["td", "th"])] for row in table("tr")]
    assert rows[0] == ["Trial", "rank", "learning rate", "dora", "Evaluation loss", "Time", "Outcome"]
    assert rows[1] == ["1", "8", "0.000213", "yes", "1.2346", "1 min", "taken"]
    assert rows[2][:6] == ["2", "64", "0.1", "no", "\u2014", "9.0 s"]
    assert [row.get("class") for row in table("tr")[1:]] == [["primary"], None]
    assert len(soup("script")) == 2, "the words of a failure stay text"
    said = re.sub(r"\s+", " ", soup.get_text())
    assert "The test questions had no part in it." in said
    assert "Of 10 trials 2 were begun" in said


def test_pairs_of_answers_are_told_with_what_was_left_out(searched: TrialReport) -> None:
    said = re.sub(r"\s+", " ", BeautifulSoup(render(searched), "html.parser").get_text(" "))
    assert "../runs/first-3f2a10 1,200 pairs; 12 pairs on test questions" in said


def test_both_are_in_the_json(searched: TrialReport, tmp_path: Path) -> None:
    export(searched, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["searches"][0]["trials"][0]["settings"]["learning_rate"] == 0.000213456
    assert content["preferences"] == list(machine_readable(searched)["preferences"])


def test_a_trial_without_either_says_nothing_of_them(page: str) -> None:
    assert "Settings that were tried" not in page
    assert "Pairs of answers" not in page
