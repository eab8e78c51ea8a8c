"""Natural Questions: original rows, simplified rows, NQ-open."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flows.data.natural_questions import read_nq, read_nq_open
from flows.errors import DataError

TEXT = (
    "Tea - wikipedia <H1> Tea </H1> <P> Tea is a drink . </P> <H2> History ( edit ) </H2> "
    "<P> It came from China in  1610 . </P> "
    '<Table> <Tr> <Th_colspan="2"> Kinds </Th> </Tr> <Tr> <Td> Green </Td> <Td> Black </Td> </Tr> </Table>'
)
TOKENS = TEXT.split(" ")
NONE = {"start_token": -1, "end_token": -1, "candidate_index": -1}


def span(first: str, last: str) -> dict[str, int]:
    return {"start_token": TOKENS.index(first), "end_token": TOKENS.index(last, TOKENS.index(first)) + 1}


def paragraph(number: int) -> dict[str, int]:
    start = [n for n, token in enumerate(TOKENS) if token.startswith("<P>")][number]
    return {"start_token": start, "end_token": TOKENS.index("</P>", start) + 1}


TABLE, ROW = span("<Table>", "</Table>"), {"start_token": TOKENS.index("Green") - 2, "end_token": len(TOKENS) - 1}
CANDIDATES = [
    {**paragraph(0), "top_level": True},
    {**paragraph(1), "top_level": True},
    {**TABLE, "top_level": True},
    {**ROW, "top_level": False},
]


def annotation(long: dict[str, int] = NONE, *shorts: dict[str, Any], yes_no: str = "NONE") -> dict[str, Any]:
    return {"annotation_id": 1, "long_answer": long, "short_answers": list(shorts), "yes_no_answer": yes_no}


def row(*annotations: dict[str, Any], name: int = 1, **fields: Any) -> dict[str, Any]:
    url = "https://en.wikipedia.org//w/index.php?title=Tea&amp;oldid=42"
    return {
        "example_id": name,
        "question_text": "what is tea",
        "document_url": url,
        "document_text": TEXT,
        "long_answer_candidates": CANDIDATES,
        "annotations": list(annotations),
        **fields,
    }


def original(*annotations: dict[str, Any]) -> dict[str, Any]:
    tokens = [{"token": token.replace("_", " "), "html_token": token.startswith("<"), "start_byte": 0, "end_byte": 1} for token in TOKENS]
    rest = {key: value for key, value in row(*annotations).items() if key != "document_text"}
    return {**rest, "document_tokens": tokens, "document_title": "Tea", "document_html": "<html></html>", "question_tokens": ["what"]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_spans_count_every_token_of_a_split_by_one_space(tmp_path: Path) -> None:
    (item,) = read_nq(write(tmp_path / "nq.jsonl", row(annotation(paragraph(1), span("1610", "1610"))))).items
    assert item.references == ("1610",)
    assert [one.text for one in item.evidence] == ["It came from China in 1610 ."]


@pytest.mark.parametrize("make", [row, original])
def test_original_and_simplified_rows_give_the_same_page(tmp_path: Path, make: Any) -> None:
    (document,) = read_nq(write(tmp_path / "nq.jsonl", make(annotation(yes_no="YES")))).documents
    assert (document.id, document.title) == ("Tea@42", "Tea")
    assert [(section.heading, section.paragraphs) for section in document.sections] == [
        ("", ("Tea is a drink .",)),
        ("History", ("It came from China in 1610 .", "Kinds Green Black")),
    ]


def test_sections_are_named_by_their_path_and_equal_names_under_others_are_apart(tmp_path: Path) -> None:
    page = "<H1> Tea </H1> <P> a </P> <H2> Green </H2> <H3> Taste </H3> <P> b </P> <P> c </P> <H2> Black </H2> <H3> Taste </H3> <P> d </P>"
    starts = [n for n, token in enumerate(page.split(" ")) if token == "<P>"]
    candidates = [{"start_token": start, "end_token": start + 3, "top_level": True} for start in starts]
    made = row(annotation(yes_no="YES"), document_text=page, long_answer_candidates=candidates)
    (document,) = read_nq(write(tmp_path / "nq.jsonl", made)).documents
    assert [(section.heading, section.paragraphs) for section in document.sections] == [
        ("", ("a",)),
        ("Green > Taste", ("b", "c")),
        ("Black > Taste", ("d",)),
    ]


@pytest.mark.parametrize(("votes", "kept"), [(0, False), (1, False), (2, True), (5, True)])
@pytest.mark.parametrize("make", [row, original])
def test_of_five_annotators_two_must_have_given_an_answer(tmp_path: Path, votes: int, kept: bool, make: Any) -> None:
    annotations = [annotation(paragraph(0), span("drink", "drink"))] * votes + [annotation()] * (5 - votes)
    source = read_nq(write(tmp_path / "nq.jsonl", make(*annotations)))
    assert [item.references for item in source.items] == ([("drink",)] if kept else [])
    assert len(source.skipped) == (not kept)


def test_one_annotation_is_enough_in_training_rows(tmp_path: Path) -> None:
    (item,) = read_nq(write(tmp_path / "nq.jsonl", row(annotation(paragraph(0), span("drink", "drink"))))).items
    assert (item.references, item.kind, item.cluster) == (("drink",), "short", "Tea")


def test_each_annotator_is_one_reference_the_most_frequent_first(tmp_path: Path) -> None:
    both = annotation(TABLE, span("Green", "Green"), span("Black", "Black"))
    one = annotation(TABLE, span("Green", "Green"))
    (item,) = read_nq(write(tmp_path / "nq.jsonl", row(one, both, annotation(), both, annotation()))).items
    assert item.references == ("Green, Black", "Green")


def test_the_smallest_candidate_around_a_short_answer_is_evidence_too(tmp_path: Path) -> None:
    (item,) = read_nq(write(tmp_path / "nq.jsonl", row(annotation(TABLE, span("Green", "Green"))))).items
    assert [one.text for one in item.evidence] == ["Kinds Green Black", "Green Black"]


@pytest.mark.parametrize(("yes_no", "references"), [("YES", ("yes",)), ("NO", ("no",))])
def test_yes_and_no_are_references(tmp_path: Path, yes_no: str, references: tuple[str, ...]) -> None:
    (item,) = read_nq(write(tmp_path / "nq.jsonl", row(annotation(paragraph(0), yes_no=yes_no)))).items
    assert (item.references, item.kind) == (references, "yesno")


def test_a_long_answer_is_a_reference_only_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "nq.jsonl", row(annotation(paragraph(0))))
    assert read_nq(path).items == ()
    assert read_nq(path).skipped[0].item == "1"
    (item,) = read_nq(path, long_answers=True).items
    assert (item.references, item.kind) == (("Tea is a drink .",), "long")


def test_a_page_that_serves_several_questions_is_one_document_and_one_cluster(tmp_path: Path) -> None:
    later = row(annotation(yes_no="NO"), name=3, document_url="https://en.wikipedia.org//w/index.php?title=Tea&amp;oldid=43")
    source = read_nq(write(tmp_path / "nq.jsonl", row(annotation(yes_no="YES")), row(annotation(yes_no="NO"), name=2), later))
    assert [document.id for document in source.documents] == ["Tea@42", "Tea@43"]
    assert {item.cluster for item in source.items} == {"Tea"}


def test_a_row_without_candidates_is_cut_at_its_paragraphs(tmp_path: Path) -> None:
    (document,) = read_nq(write(tmp_path / "nq.jsonl", row(annotation(yes_no="YES"), long_answer_candidates=[]))).documents
    assert [text for section in document.sections for text in section.paragraphs][1].startswith("Tea is a drink .")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (row(annotation(paragraph(0), {"start_token": 5, "end_token": 9999})), "span [5, 9999) lies outside"),
        (row(annotation(paragraph(0), {"start_token": "5", "end_token": 6})), "'start_token' is text, expected a whole number"),
        (row(annotation(yes_no="PERHAPS")), "'yes_no_answer' is 'perhaps'"),
        (row(), "'annotations' is empty or missing"),
        (row(annotation(), document_text=None), "neither 'document_tokens' nor a text 'document_text'"),
        (row(annotation(), long_answer_candidates=[{"start_token": 0, "end_token": 999}]), "long answer candidate [0, 999) lies outside"),
        (row(annotation(yes_no="YES")), "duplicate id '1', first seen at"),
    ],
)
def test_a_bad_row_is_named_with_its_line_or_left_out_and_listed(tmp_path: Path, broken: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "nq.jsonl", row(annotation(yes_no="YES")), broken)
    with pytest.raises(DataError) as caught:
        read_nq(path)
    assert f"{path}:2: " in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.rows_read == 2
    source = read_nq(path, bad_rows="skip")
    assert (len(source.items), len(source.bad_rows)) == (1, 1)


def test_shards_of_a_folder_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    lines = [json.dumps(row(annotation(yes_no="YES"), name=n)) for n in range(4)]
    (tmp_path / "nq-dev-00.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:2]).encode()))
    (tmp_path / "nq-dev-01.jsonl").write_text("\n".join(lines[2:]))
    assert [item.id for item in read_nq(tmp_path).items] == ["0", "1", "2", "3"]
    assert [item.id for item in read_nq(tmp_path, limit=3).items] == ["0", "1", "2"]


def test_nq_open_names_items_by_their_question_so_that_added_rows_change_no_name(tmp_path: Path) -> None:
    rows = [{"question": f"who is {name}", "answer": [name, "somebody"]} for name in ("ann", "bob")]
    before = read_nq_open(write(tmp_path / "a.jsonl", *rows)).items
    after = read_nq_open(write(tmp_path / "b.jsonl", {"question": "who is cid", "answer": ["cid"]}, *rows)).items
    assert after[1:] == before
    assert before[0].references == ("ann", "somebody")


def test_a_question_that_comes_twice_in_nq_open_has_two_ids_in_one_cluster(tmp_path: Path) -> None:
    one, two = read_nq_open(write(tmp_path / "a.jsonl", {"question": "who?", "answer": ["a"]}, {"question": "Who", "answer": "b"})).items
    assert two.id == f"{one.id}-2"
    assert one.cluster == two.cluster


def test_an_nq_open_row_without_answers_is_skipped(tmp_path: Path) -> None:
    source = read_nq_open(write(tmp_path / "a.jsonl", {"question": "who?", "answer": ["a"]}, {"question": "why?", "answer": []}))
    assert (len(source.items), source.rows_read, [one.line for one in source.skipped]) == (1, 2, [2])
