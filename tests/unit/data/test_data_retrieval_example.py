"""The BEIR folder of examples/retrieval: what is committed is what its script writes, and its splits do not meet."""

import filecmp
from pathlib import Path

import pytest

from examples.retrieval.make_data import DATA, collect, write
from flows.data.beir import read_beir

FILES = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv")


def test_the_script_writes_the_committed_bytes(tmp_path: Path) -> None:
    write(tmp_path, collect())
    assert [name for name in FILES if not filecmp.cmp(tmp_path / name, DATA / name, shallow=False)] == []


@pytest.mark.parametrize(("split", "least"), [("train", 350), ("test", 200)])
def test_every_question_of_a_split_has_a_paragraph_that_answers_it(split: str, least: int) -> None:
    source = read_beir(DATA, split=split)
    documents = {document.id for document in source.documents}
    assert len(source.items) >= least
    for item in source.items:
        gains = {one.document: one.gain for one in item.relevance}
        assert set(gains) <= documents
        assert sorted(gains.values(), reverse=True)[0] == 2


def test_no_document_is_asked_about_in_both_splits() -> None:
    train, test = (read_beir(DATA, split=split).items for split in ("train", "test"))
    assert not {item.cluster for item in train} & {item.cluster for item in test}
    assert not {one.document for item in train for one in item.relevance} & {one.document for item in test for one in item.relevance}


def test_some_judgements_are_graded() -> None:
    gains = {one.gain for item in read_beir(DATA).items for one in item.relevance}
    assert gains == {1, 2}


def test_the_folder_stays_small() -> None:
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 1_000_000
