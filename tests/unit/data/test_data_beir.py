"""BEIR folders: sound ones in every form that the public sets come in, and every way in which one can be broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flows.data.beir import read_beir
from flows.data.chunk import Chunking, chunk
from flows.errors import DataError, UserError
from flows.records import Relevance

CORPUS: list[dict[str, Any]] = [
    {"_id": "d1", "title": "Tea", "text": "Tea is steeped.", "metadata": {}},
    {"_id": "d2", "title": "", "text": "Coffee is brewed.\n\nIt is dark.", "metadata": {}},
    {"_id": "d3", "title": "Only a title", "text": ""},
]
QUERIES: list[dict[str, Any]] = [
    {"_id": "q1", "text": "what is steeped"},
    {"_id": "q2", "text": "what is dark", "metadata": {"cluster": "drinks"}},
    {"_id": "q3", "text": "asked in training"},
]
HEADER = "query-id\tcorpus-id\tscore\n"
TEST = HEADER + "q1\td1\t2\nq1\td2\t0\nq1\td3\t1\nq2\td2\t1\n"


def rows(values: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text(rows(CORPUS))
    (tmp_path / "queries.jsonl").write_text(rows(QUERIES))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(TEST)
    (tmp_path / "qrels" / "train.tsv").write_text(HEADER + "q3\td1\t1\n")
    return tmp_path


def test_questions_of_the_split_come_with_graded_gains_and_the_others_are_listed(folder: Path) -> None:
    source = read_beir(folder)
    assert [(item.id, item.question, item.references) for item in source.items] == [
        ("q1", "what is steeped", ()),
        ("q2", "what is dark", ()),
    ]
    assert source.items[0].relevance == (Relevance("d1", 2), Relevance("d2", 0), Relevance("d3", 1))
    assert [(skipped.item, skipped.reason) for skipped in source.skipped] == [("q3", "not judged in the split test")]
    assert [item.id for item in read_beir(folder, split="train").items] == ["q3"]
    assert source.rows_read == 3 + 3 + 4


def test_a_question_is_a_cluster_of_its_own_unless_its_metadata_name_one(folder: Path) -> None:
    assert [item.cluster for item in read_beir(folder).items] == ["q1", "drinks"]


def test_a_document_that_is_one_passage_is_title_and_text_joined_by_a_blank(folder: Path) -> None:
    passages = chunk(read_beir(folder).documents, Chunking("document"))
    assert [(passage.document, passage.text) for passage in passages] == [
        ("d1", "Tea Tea is steeped."),
        ("d2", "Coffee is brewed.\n\nIt is dark."),
        ("d3", "Only a title"),
    ]


def test_of_a_document_that_is_cut_the_first_passage_opens_with_the_title(folder: Path) -> None:
    passages = chunk(read_beir(folder).documents, Chunking("paragraph"))
    assert [passage.text for passage in passages] == ["Tea Tea is steeped.", "Coffee is brewed.", "It is dark.", "Only a title"]


def test_packed_files_are_read_as_they_are(folder: Path) -> None:
    plain = read_beir(folder)
    for file in [*folder.glob("*.jsonl"), *(folder / "qrels").glob("*.tsv")]:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = read_beir(folder)
    assert (packed.items, packed.documents) == (plain.items, plain.documents)


def test_a_document_without_title_and_text_is_listed_and_still_counts_as_relevant(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text(rows([*CORPUS[:2], {"_id": "d3", "title": " ", "text": ""}]))
    source = read_beir(folder)
    assert next((skipped.item, skipped.reason) for skipped in source.skipped) == ("d3", "neither title nor text")
    assert {document.id for document in source.documents} == {"d1", "d2"}
    assert Relevance("d3", 1) in source.items[0].relevance


def test_whole_numbers_are_ids_and_negative_scores_are_kept(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text(rows([{"_id": 7, "text": "seven"}]))
    (folder / "queries.jsonl").write_text(rows([{"_id": 1, "text": "which"}]))
    (folder / "qrels" / "test.tsv").write_text(HEADER + "1\t7\t-1\n")
    assert read_beir(folder).items[0].relevance == (Relevance("7", -1),)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("corpus.jsonl", rows(CORPUS) + '{"_id": "d4", "text"\n', r"corpus\.jsonl:4: broken JSON"),
        ("corpus.jsonl", rows([*CORPUS, CORPUS[0]]), r"corpus\.jsonl:4: duplicate document id 'd1', first seen in line 1"),
        ("corpus.jsonl", rows([{"_id": "d1", "title": "no text"}]), r"corpus\.jsonl:1: 'text' is missing; fields found: _id, title"),
        ("corpus.jsonl", rows([{"_id": "d1", "text": ["a"]}]), r"corpus\.jsonl:1: 'text' is a list, expected text"),
        ("corpus.jsonl", rows([{"id": "d1", "text": "a"}]), r"corpus\.jsonl:1: '_id' is missing"),
        ("corpus.jsonl", "", r"corpus\.jsonl is empty"),
        ("queries.jsonl", rows([*QUERIES, QUERIES[1]]), r"queries\.jsonl:4: duplicate question id 'q2', first seen in line 2"),
        ("queries.jsonl", rows([{"_id": "q1", "text": " "}]), r"queries\.jsonl:1: 'text' is blank"),
        (
            "queries.jsonl",
            rows([{"_id": "q1", "text": "a", "metadata": 3}]),
            r"queries\.jsonl:1: 'metadata' is a number, expected",
        ),
        ("qrels/test.tsv", TEST + "q9\td1\t1\n", r"test\.tsv:6: there is no question 'q9' in the queries"),
        ("qrels/test.tsv", TEST + "q1\td9\t1\n", r"test\.tsv:6: there is no document 'd9' in the corpus"),
        ("qrels/test.tsv", TEST + "q1\td1\t1\n", r"test\.tsv:6: 'q1' and 'd1' are judged 1 here and 2 in line 2"),
        ("qrels/test.tsv", TEST + "q1 d1 1\n", r"test\.tsv:6: 1 cells apart by tabs, expected 3"),
        ("qrels/test.tsv", TEST + "q1\td1\t0.5\n", r"test\.tsv:6: 'score' is '0\.5', expected a whole number"),
        ("qrels/test.tsv", TEST + "q1\t\t1\n", r"test\.tsv:6: 'corpus-id' is blank"),
        ("qrels/test.tsv", TEST.replace("d2", "d\xff"), r"test\.tsv:3: not valid UTF-8"),
        ("qrels/test.tsv", "q1\td1\t1\n", r"test\.tsv:1: the header is 'q1 d1 1', expected 'query-id corpus-id score'"),
        ("qrels/test.tsv", "q1 0 d1 1\n", r"Files of TREC have no header and four columns"),
        ("qrels/test.tsv", HEADER, r"test\.tsv judges no question"),
        ("qrels/test.tsv", "", r"test\.tsv is empty"),
    ],
)
def test_what_is_broken_is_named_with_its_file_and_line(folder: Path, file: str, text: str, said: str) -> None:
    (folder / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=said) as caught:
        read_beir(folder)
    assert caught.value.exit_code == 2


def test_broken_rows_can_be_left_out_and_are_listed(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text("{\n" + rows(CORPUS))
    (folder / "qrels" / "test.tsv").write_text(TEST + "q9\td1\t1\n")
    source = read_beir(folder, bad_rows="skip")
    assert [item.id for item in source.items] == ["q1", "q2"]
    assert [(Path(row.file).name, row.line) for row in source.bad_rows] == [("corpus.jsonl", 1), ("test.tsv", 6)]


def test_a_judgement_that_is_there_twice_alike_is_listed(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text(TEST + "q1\td1\t2\n")
    source = read_beir(folder)
    assert ("q1", "judged twice alike", 6) in [(skipped.item, skipped.reason, skipped.line) for skipped in source.skipped]
    assert len(source.items[0].relevance) == 3


@pytest.mark.parametrize(
    ("missing", "split", "said"),
    [
        ("corpus.jsonl", "test", r"holds no corpus\.jsonl, nor corpus\.jsonl\.gz"),
        ("queries.jsonl", "test", r"holds no queries\.jsonl"),
        ("qrels/train.tsv", "train", r"has no split 'train', but: test\."),
        ("", "tset", r"has no split 'tset', but: test, train\. Did you mean 'test'\?"),
    ],
)
def test_a_missing_file_is_named_and_a_split_is_guessed(folder: Path, missing: str, split: str, said: str) -> None:
    if missing:
        (folder / missing).unlink()
    with pytest.raises(UserError, match=said):
        read_beir(folder, split=split)


def test_a_folder_without_judgements_and_a_file_are_refused(folder: Path) -> None:
    for file in (folder / "qrels").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"holds no qrels/test\.tsv, nor the judgements of any other split"):
        read_beir(folder)
    (folder / "qrels").rmdir()
    with pytest.raises(UserError, match=r"holds no qrels/test\.tsv"):
        read_beir(folder)
    with pytest.raises(UserError, match=r"is a file; a BEIR data set is a folder"):
        read_beir(folder / "corpus.jsonl")
    with pytest.raises(UserError, match=r"There is no folder"):
        read_beir(folder / "nowhere")


def test_a_corpus_of_a_hundred_thousand_documents_is_read_line_by_line(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(100_000):
            file.write(f'{{"_id": "d{number}", "title": "", "text": "text {number}"}}\n')
    assert len(read_beir(folder).documents) == 100_000
