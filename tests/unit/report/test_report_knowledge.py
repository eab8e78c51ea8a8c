"""What bases know of training questions, in the page, the JSON and a file of its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from report_trials import HOSTILE

from flows.report.content import TrialReport
from flows.report.export import export, machine_readable
from flows.report.page import render
from flows.report.wording import caveats

KINDS = ("highly_known", "maybe_known", "weakly_known", "unknown")


def family(name: str, keep: tuple[str, ...] = KINDS, evaluate_on: tuple[str, ...] = KINDS, **classes: int) -> dict[str, Any]:
    counts = dict.fromkeys((*KINDS, "unanswerable"), 0) | classes
    return {
        "family": name,
        "model": "reader",
        "questions": sum(counts.values()),
        "classes": counts,
        "keep": keep,
        "evaluate_on": tuple(one for one in evaluate_on if one in keep),
        "settings": {"exemplar_sets": 4},
        "answers": 1234,
        "prompt_tokens": 5000,
        "completion_tokens": 678,
        "cost_usd": None,
    }


TAGS = [{"family": "raft", "item": "i1", "question": HOSTILE, "class": "unknown", "p_greedy": 0.0, "p_sampled": 0.0, "kept": False}]


@pytest.fixture(scope="module")
def known(report: TrialReport) -> TrialReport:
    some = family("raft", KINDS[:2], KINDS[:1], highly_known=30, maybe_known=10, unknown=40, weakly_known=20, unanswerable=7)
    return replace(report, knowledge=[some, family("bare", unanswerable=3)], knowledge_tags=TAGS)


def test_the_page_shows_the_share_of_each_class_and_what_was_trained_on(known: TrialReport) -> None:
    soup = BeautifulSoup(render(known), "html.parser")
    table = next(table for table in soup("table") if "how well the base knows them" in table.caption.text)
    rows = {row.th.text: [cell.get_text(" ", strip=True) for cell in row("td")] for row in table.tbody("tr")}
    shares = ["30\u202f% 30", "10\u202f% 10", "20\u202f% 20", "40\u202f% 40"]
    assert rows["raft"] == ["reader", "107", *shares, "7", "highly known, maybe known", "highly known", "1,234", "5,678", "\u2014"]
    assert rows["bare"][2:9] == [*["\u2014 0"] * 4, "3", "all", "the same"]


def test_a_trial_that_did_not_ask_says_nothing_of_it(report: TrialReport) -> None:
    assert "how well the base knows them" not in render(report)
    assert machine_readable(report)["knowledge"] == []


def test_the_tags_are_a_file_and_the_counts_are_in_the_json(known: TrialReport, tmp_path: Path) -> None:
    export(known, tmp_path)
    with (tmp_path / "knowledge.jsonl").open(encoding="utf-8") as lines:
        assert [json.loads(line) for line in lines] == TAGS
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["knowledge"][0]["classes"]["weakly_known"] == 20
    assert content["knowledge"][0]["keep"] == ["highly_known", "maybe_known"]


def test_a_choice_of_questions_is_a_reason_for_care_and_no_choice_is_none(known: TrialReport) -> None:
    (said,) = [caveat.text for caveat in caveats(known) if caveat.title == "Training questions chosen"]
    assert "raft (highly known, maybe known)" in said
    assert "bare" not in said
