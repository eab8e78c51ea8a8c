"""What the table of questions works on: the analysis' scores, every run, texts once."""

import json
from dataclasses import replace

import pytest
from report_trials import HOSTILE

from flows.report import item_data
from flows.report.content import TrialReport


@pytest.fixture(scope="module")
def data(report: TrialReport) -> dict[str, object]:
    return item_data.item_data(report)


def test_scores_are_those_of_the_analysis(report: TrialReport, data: dict) -> None:
    arm, control = data["arms"].index("raft-1000"), data["arms"].index("base")
    criterion = data["criteria"].index("accuracy")
    by_id = {item["id"]: item for item in data["items"]}
    for expected in report.analysis.item_differences:
        scores = by_id[expected.item]["scores"][criterion]
        assert (scores[arm], scores[control]) == (pytest.approx(expected.arm, abs=1e-4), pytest.approx(expected.control, abs=1e-4))


def test_every_answer_and_judge_run_is_there(report: TrialReport, data: dict) -> None:
    answers = [answer for item in data["items"] for answer in item["answers"]]
    assert len(answers) == len(report.answers)
    assert sum(len(answer["runs"]) for answer in answers) == len(report.judgements)


def test_a_run_without_a_score_keeps_its_reply_and_reason(report: TrialReport, data: dict) -> None:
    missing = [run for item in data["items"] for answer in item["answers"] for run in answer["runs"] if run[2] is None]
    assert len(missing) == sum(judgement.score is None for judgement in report.judgements) > 0
    assert {data["strings"][run[4]] for run in missing} == {"unparsed"}
    assert {data["strings"][run[3]] for run in missing} == {"I cannot say."}


def test_an_answer_that_failed_has_no_text_and_says_why(data: dict) -> None:
    item = next(item for item in data["items"] if item["id"] == "q007")
    failed = [answer for answer in item["answers"] if answer["text"] is None]
    assert [answer["error"] for answer in failed] == ["DEADLINE_EXCEEDED: the generator did not answer in 60 s"]


def test_passages_are_ranked_and_gold_is_named_though_not_retrieved(report: TrialReport, data: dict) -> None:
    names = [passage["id"] for passage in data["passages"]]
    for item in data["items"]:
        assert [hit[1] for hit in item["hits"]] == [1, 2, 3, 4, 5]
        assert tuple(names[place] for place in item["gold"]) == report.gold.get(item["id"], ())
    unseen = next(item for item in data["items"] if item["id"] == "q002")
    assert unseen["gold"][0] not in [hit[0] for hit in unseen["hits"]]
    cut = next(item for item in data["items"] if item["id"] == "q003")["answers"][0]
    assert (len(cut["shown"]), len(cut["cut"])) == (4, 1)


def test_equal_texts_are_stored_once(data: dict) -> None:
    assert len(data["strings"]) == len(set(data["strings"]))


def test_the_embedded_text_reads_back_as_the_same_data(report: TrialReport, data: dict) -> None:
    text = item_data.item_json(report)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == json.loads(json.dumps(data))


def test_replies_are_shortened_only_where_the_page_would_grow_too_large_and_the_page_says_so(
    report: TrialReport, data: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data["reply_limit"] is None
    long = replace(report, judgements=[replace(one, reply=f"{one.run} " * 400) for one in report.judgements])
    monkeypatch.setattr(item_data, "LARGEST", len(item_data.item_json(report)))
    shortened = json.loads(item_data.item_json(long))
    assert shortened["reply_limit"] is not None
    reply = shortened["strings"][shortened["items"][0]["answers"][0]["runs"][0][3]]
    assert reply == ("0 " * 400)[: shortened["reply_limit"]] + " [\u2026]"
    assert HOSTILE in shortened["strings"]
