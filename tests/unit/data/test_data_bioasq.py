"""BioASQ task b, in the forms of its training and test files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flows.data.bioasq import read_bioasq
from flows.errors import DataError
from flows.records import Evidence

PUBMED = "http://www.ncbi.nlm.nih.gov/pubmed/"


def snippet(number: int, text: str, section: str = "abstract") -> dict[str, Any]:
    return {
        "document": f"{PUBMED}{number}",
        "text": text,
        "beginSection": section,
        "endSection": section,
        "offsetInBeginSection": 0,
        "offsetInEndSection": len(text),
    }


def question(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "type": kind, "body": f"Question {name}?", "concepts": [], "triples": [], **fields}


def write(path: Path, *questions: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"questions": questions}, indent=2), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "exact", "references"),
    [
        ("yesno", "Yes", ("yes",)),
        ("yesno", ["no"], ("no",)),
        ("factoid", "p53", ("p53",)),
        ("factoid", ["p53", "TP53"], ("p53", "TP53")),
        ("factoid", [["p53", "TP53"]], ("p53", "TP53")),
        ("list", [["alpha", "A"], ["beta"]], ("alpha; beta", "A; beta")),
        ("list", ["alpha", "beta"], ("alpha; beta",)),
        ("list", [["alpha"], [" "], []], ("alpha",)),
    ],
)
def test_an_exact_answer_of_every_form_becomes_references(tmp_path: Path, kind: str, exact: Any, references: tuple[str, ...]) -> None:
    path = write(tmp_path / "b.json", question("q", kind, exact_answer=exact, ideal_answer="A long answer."))
    assert read_bioasq(path).items[0].references == references


@pytest.mark.parametrize(("ideal", "references"), [("One.", ("One.",)), (["One.", " Two. ", "One."], ("One.", "Two."))])
def test_a_summary_has_its_ideal_answers_as_references(tmp_path: Path, ideal: Any, references: tuple[str, ...]) -> None:
    path = write(tmp_path / "b.json", question("q", "summary", ideal_answer=ideal))
    assert read_bioasq(path).items[0].references == references


@pytest.mark.parametrize(("answers", "references"), [("exact", ("yes",)), ("ideal", ("It is.",)), ("both", ("yes", "It is."))])
def test_the_option_answers_chooses_the_references(tmp_path: Path, answers: Any, references: tuple[str, ...]) -> None:
    path = write(tmp_path / "b.json", question("q", "yesno", exact_answer="yes", ideal_answer=["It is."]))
    assert read_bioasq(path, answers=answers).items[0].references == references


def test_a_question_without_an_exact_answer_takes_the_ideal_one(tmp_path: Path) -> None:
    path = write(tmp_path / "b.json", question("q", "factoid", exact_answer=None, ideal_answer="It is p53."))
    assert read_bioasq(path).items[0].references == ("It is p53.",)


def test_a_test_file_gives_no_items_and_lists_each_question(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text(
        json.dumps({"questions": [{"id": "a", "type": "list", "body": "Which?"}, {"id": "b", "type": "yesno", "body": "Is it?"}]})
    )
    source = read_bioasq(path)
    assert source.items == ()
    assert source.rows_read == 2
    assert [(one.item, "no answer" in one.reason) for one in source.skipped] == [("a", True), ("b", True)]


def test_snippets_are_evidence_and_make_one_document_for_each_url(tmp_path: Path) -> None:
    one = question(
        "a", "yesno", exact_answer="yes", snippets=[snippet(1, "The title.", "title"), snippet(1, "First."), snippet(2, "Other.")]
    )
    two = question("b", "yesno", exact_answer="no", snippets=[snippet(1, "Second."), snippet(1, "First.")])
    source = read_bioasq(write(tmp_path / "b.json", one, two))
    assert source.items[1].evidence == (Evidence(f"{PUBMED}1", "Second."), Evidence(f"{PUBMED}1", "First."))
    first, second = source.documents
    assert (first.id, first.title) == (f"{PUBMED}1", "The title.")
    assert [(section.heading, section.paragraphs) for section in first.sections] == [
        ("title", ("The title.",)),
        ("abstract", ("First.", "Second.")),
    ]
    assert second.id == f"{PUBMED}2"


def test_questions_that_share_a_document_over_others_are_one_cluster(tmp_path: Path) -> None:
    documents = {"a": [3, 2], "b": [2, 1], "c": [1, 5], "d": [4], "e": []}
    questions = [question(name, "yesno", exact_answer="yes", documents=[f"{PUBMED}{n}" for n in ns]) for name, ns in documents.items()]
    clusters = {item.id: item.cluster for item in read_bioasq(write(tmp_path / "b.json", *questions)).items}
    assert clusters == {"a": f"{PUBMED}1", "b": f"{PUBMED}1", "c": f"{PUBMED}1", "d": f"{PUBMED}4", "e": "question:e"}


def test_a_folder_of_files_is_read_as_one_source(tmp_path: Path) -> None:
    write(tmp_path / "1.json", question("a", "yesno", exact_answer="yes", snippets=[snippet(1, "First.")]))
    packed = json.dumps({"questions": [question("b", "yesno", exact_answer="no", snippets=[snippet(1, "Second.")])]})
    (tmp_path / "2.json.gz").write_bytes(gzip.compress(packed.encode()))
    source = read_bioasq(tmp_path)
    assert [item.cluster for item in source.items] == [f"{PUBMED}1"] * 2
    assert source.documents[0].sections[0].paragraphs == ("First.", "Second.")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"id": "x", "type": "yesno"}, "'body' is missing; fields found: id, type"),
        ({"id": "x", "type": "poem", "body": "?"}, "'type' is 'poem', expected one of yesno, factoid, list, summary"),
        ({"id": "x", "type": "yesno", "body": "Q?", "exact_answer": "maybe"}, "'maybe', expected 'yes' or 'no'"),
        ({"id": "x", "type": "list", "body": "Q?", "exact_answer": 3}, "'exact_answer' is a number"),
        ({"id": "x", "type": "list", "body": "Q?", "exact_answer": [["a"], {"b": 1}]}, "entry 2 of 'exact_answer' is an object"),
        ({"id": "x", "type": "summary", "body": "Q?", "ideal_answer": {"a": 1}}, "'ideal_answer' is an object"),
        ({"id": "x", "type": "summary", "body": "Q?", "snippets": ["text"]}, "entry 1 of 'snippets' is text, expected an object"),
        ("a question", "the question is text"),
        ({"id": "good", "type": "yesno", "body": "Q?", "exact_answer": "yes"}, "duplicate id 'good', first seen at"),
    ],
)
def test_a_bad_question_is_named_with_its_line_or_left_out_and_listed(tmp_path: Path, broken: Any, reason: str) -> None:
    path = tmp_path / "b.json"
    good = json.dumps(question("good", "yesno", exact_answer="yes"))
    path.write_text(f'{{"questions": [\n{good},\n{json.dumps(broken)}\n]}}', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_bioasq(path)
    assert (caught.value.rows_read, caught.value.bad_rows[0].line) == (2, 3)
    assert reason in str(caught.value)
    kept = read_bioasq(path, bad_rows="skip")
    assert [item.id for item in kept.items] == ["good"]
    assert [(row.line, reason in row.reason) for row in kept.bad_rows] == [(3, True)]


def test_an_object_without_questions_tells_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text('{"items": [], "version": 2}')
    with pytest.raises(DataError, match="holds no questions; members found: items, version"):
        read_bioasq(path)
