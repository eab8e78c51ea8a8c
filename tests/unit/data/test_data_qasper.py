"""Qasper, in its raw form."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.data.qasper import read_qasper
from flows.errors import DataError
from flows.records import Evidence


def answer(**fields: Any) -> dict[str, Any]:
    empty = {
        "unanswerable": False,
        "extractive_spans": [],
        "yes_no": None,
        "free_form_answer": "",
        "evidence": [],
        "highlighted_evidence": [],
    }
    return {"answer": {**empty, **fields}, "annotation_id": "a", "worker_id": "w"}


def question(name: str, *answers: dict[str, Any]) -> dict[str, Any]:
    return {"question": f"Question {name}?", "question_id": name, "nlp_background": "", "answers": list(answers)}


def paper(*questions: dict[str, Any]) -> dict[str, Any]:
    sections = [{"section_name": None, "paragraphs": ["Opening.", ""]}, {"section_name": "Results ::: Main", "paragraphs": ["It wins."]}]
    return {"title": "A paper", "abstract": "We win.", "full_text": sections, "qas": list(questions)}


def write(path: Path, **papers: Any) -> Path:
    path.write_text(json.dumps(papers), encoding="utf-8")
    return path


def test_sections_without_a_name_have_no_heading_and_the_abstract_is_a_section(tmp_path: Path) -> None:
    (document,) = read_qasper(write(tmp_path / "q.json", p1=paper(question("q", answer(yes_no=True))))).documents
    assert (document.id, document.title) == ("p1", "A paper")
    assert [(section.heading, section.paragraphs) for section in document.sections] == [
        ("Abstract", ("We win.",)),
        ("", ("Opening.",)),
        ("Results > Main", ("It wins.",)),
    ]


@pytest.mark.parametrize(
    ("fields", "reference", "kind"),
    [
        ({"extractive_spans": ["BLEU", "ROUGE"]}, "BLEU, ROUGE", "extractive"),
        ({"free_form_answer": "By far."}, "By far.", "free_form"),
        ({"yes_no": True}, "Yes", "yesno"),
        ({"yes_no": False}, "No", "yesno"),
    ],
)
def test_each_kind_of_answer_becomes_a_reference(tmp_path: Path, fields: dict[str, Any], reference: str, kind: str) -> None:
    (item,) = read_qasper(write(tmp_path / "q.json", p1=paper(question("q", answer(**fields))))).items
    assert (item.references, item.kind, item.answerable, item.cluster) == ((reference,), kind, True, "p1")


def test_several_annotators_give_several_references_the_most_frequent_first(tmp_path: Path) -> None:
    answers = [answer(free_form_answer="Once."), answer(yes_no=True), answer(yes_no=True)]
    (item,) = read_qasper(write(tmp_path / "q.json", p1=paper(question("q", *answers)))).items
    assert (item.references, item.kind) == (("Yes", "Once."), "yesno")


@pytest.mark.parametrize(("votes", "answers", "answerable"), [(2, 1, False), (1, 0, False), (1, 1, True), (1, 2, True)])
def test_a_question_is_unanswerable_when_most_annotators_say_so(tmp_path: Path, votes: int, answers: int, answerable: bool) -> None:
    given = [answer(unanswerable=True)] * votes + [answer(free_form_answer="Five.", evidence=["It wins."])] * answers
    (item,) = read_qasper(write(tmp_path / "q.json", p1=paper(question("q", *given)))).items
    assert item.answerable is answerable
    assert item.references == (("Five.",) if answerable else ("unanswerable",))
    assert item.evidence == ((Evidence("p1", "It wins."),) if answerable else ())


def test_evidence_in_tables_and_figures_is_no_text_evidence(tmp_path: Path) -> None:
    given = answer(free_form_answer="Five.", evidence=["FLOAT SELECTED: Table 1: Results.", "It wins."])
    (item,) = read_qasper(write(tmp_path / "q.json", p1=paper(question("q", given, given)))).items
    assert item.evidence == (Evidence("p1", "It wins."),)


def test_questions_of_papers_do_not_stand_alone(tmp_path: Path) -> None:
    assert read_qasper(write(tmp_path / "q.json", p1=paper(question("q", answer(yes_no=True))))).stand_alone is False


def test_a_question_without_any_answer_is_skipped_with_the_reason(tmp_path: Path) -> None:
    source = read_qasper(write(tmp_path / "q.json", p1=paper(question("none"), question("empty", answer()))))
    assert source.items == ()
    assert [(one.item, one.reason) for one in source.skipped] == [
        ("none", "no annotations (a test file without answers)"),
        ("empty", "no annotator gave an answer"),
    ]


def test_a_bad_question_has_its_own_line_in_an_indented_file(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    broken = {"question_id": "bad", "answers": []}
    path.write_text(json.dumps({"p1": paper(question("good", answer(yes_no=True)), broken)}, indent=1))
    with pytest.raises(DataError, match="'question' is missing") as caught:
        read_qasper(path)
    (row,) = caught.value.bad_rows
    assert path.read_text().splitlines()[row.line - 1].strip() == '"question_id": "bad",'
    assert [item.id for item in read_qasper(path, bad_rows="skip").items] == ["good"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("text", "paper 'p2': the value is text, expected an object"),
        ({"title": "T", "abstract": "A", "full_text": []}, "paper 'p2': 'qas' is missing"),
        ({"title": "T", "full_text": {"section_name": []}, "qas": []}, "paper 'p2': 'full_text' is an object, expected a list"),
    ],
)
def test_a_bad_paper_is_named(tmp_path: Path, value: Any, reason: str) -> None:
    path = write(tmp_path / "q.json", p1=paper(question("q", answer(yes_no=True))), p2=value)
    with pytest.raises(DataError) as caught:
        read_qasper(path)
    assert reason in str(caught.value)


def test_a_list_is_not_taken_for_qasper(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text('[{"question": "?"}]')
    with pytest.raises(DataError, match="a list, expected one object with a member for each paper"):
        read_qasper(path)
