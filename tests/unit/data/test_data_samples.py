"""Readers on rows of the public data sets, where they lie beside the repository."""

from pathlib import Path

import pytest

from flows.data.chunk import Chunking, chunk
from flows.data.gold import map_gold
from flows.data.readers import READERS

SAMPLES = Path(__file__).parents[3].parent / "shared" / "samples"

pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the public samples are not here")


@pytest.mark.parametrize(
    ("reader", "name", "rows", "items", "documents"),
    [
        ("qasper", "qasper-dev-v0.1.json", 4, 4, 1),
        ("qasper", "qasper-train-v0.1.json", 9, 9, 1),
        ("nq", "nq_simplified_train_sample.jsonl", 1, 0, 1),
        ("nq", "nq_simplified_dev_sample.jsonl", 1, 1, 1),
        ("nq_open", "nq_open_dev_200.jsonl", 200, 200, 0),
    ],
)
def test_every_row_is_an_item_or_listed(reader: str, name: str, rows: int, items: int, documents: int) -> None:
    source = READERS[reader](SAMPLES / name)
    assert (source.rows_read, len(source.items), len(source.documents), len(source.skipped)) == (rows, items, documents, rows - items)
    assert all(item.question and all(item.references) for item in source.items)


def test_the_short_answer_of_a_page_lies_in_its_gold_passage() -> None:
    source = READERS["nq"](SAMPLES / "nq_simplified_dev_sample.jsonl")
    passages = chunk(source.documents, Chunking(max_tokens=200))
    gold = map_gold(source.items, passages)
    (item,) = source.items
    assert item.references == ("Tracy McConnell",)
    (name,) = gold.passages[item.id]
    assert "Tracy McConnell" in next(passage.text for passage in passages if passage.id == name)


def test_paragraphs_of_a_page_hold_no_html_tokens() -> None:
    (document,) = READERS["nq"](SAMPLES / "nq_simplified_train_sample.jsonl").documents
    assert [section.heading for section in document.sections] == [
        "",
        "Title History > Names",
        "Title History > Reigns",
        "Combined reigns",
    ]
    assert not any("<P>" in text or "</Td>" in text for section in document.sections for text in section.paragraphs)


def test_evidence_of_a_paper_is_found_in_it() -> None:
    source = READERS["qasper"](SAMPLES / "qasper-dev-v0.1.json")
    gold = map_gold(source.items, chunk(source.documents, Chunking(max_tokens=200)))
    assert gold.evidence_count == 8
    assert all(gold.passages[item.id] for item in source.items)


def test_a_csv_with_other_columns_is_read_by_naming_them() -> None:
    source = READERS["table"](SAMPLES / "viggo_100.csv", columns={"question": "mr", "reference": "ref"})
    assert len(source.items) == 100
