"""A user's own tables."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest

from flows.data.gold import map_gold
from flows.data.tables import read_table
from flows.errors import DataError, UserError
from flows.records import Evidence, Item, Passage

CSV = (
    "id,question,references,cluster,gold,document,kind,answerable\n"
    'a,"What, exactly, is tea?",a drink || a plant,tea,Tea is a drink. || Tea is a plant.,tea.txt,factoid,true\n'
    'b,"Who\ndrinks it?","[""everybody"", ""people""]",tea,,,,\n'
    "c,Who hates it?,,tea,,,,false\n"
)
EXPECTED = (
    Item(
        "a",
        "What, exactly, is tea?",
        ("a drink", "a plant"),
        "tea",
        "factoid",
        (Evidence("tea.txt", "Tea is a drink."), Evidence("tea.txt", "Tea is a plant.")),
    ),
    Item("b", "Who\ndrinks it?", ("everybody", "people"), "tea"),
    Item("c", "Who hates it?", ("unanswerable",), "tea", answerable=False),
)
ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "question": "What, exactly, is tea?",
        "references": ["a drink", "a plant"],
        "cluster": "tea",
        "gold": ["Tea is a drink.", "Tea is a plant."],
        "document": "tea.txt",
        "kind": "factoid",
        "answerable": True,
    },
    {"id": "b", "question": "Who\ndrinks it?", "references": ["everybody", "people"], "cluster": "tea"},
    {"id": "c", "question": "Who hates it?", "references": [], "cluster": "tea", "answerable": False},
]


def write(path: Path) -> Path:
    forms: dict[str, Callable[[], object]] = {
        ".csv": lambda: path.write_text(CSV),
        ".tsv": lambda: path.write_text("id\tquestion\treference\n" + "".join(f"{n}\tWho, {n}?\tx\n" for n in "abc")),
        ".jsonl": lambda: path.write_text("\n".join(map(json.dumps, ROWS))),
        ".json": lambda: path.write_text(json.dumps(ROWS)),
        ".parquet": lambda: polars.DataFrame(ROWS).write_parquet(path),
        ".gz": lambda: path.write_bytes(gzip.compress(CSV.encode())),
    }
    forms[path.suffix]()
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.json", "t.parquet"])
def test_every_format_gives_the_same_items(tmp_path: Path, name: str) -> None:
    source = read_table(write(tmp_path / name))
    assert source.items == EXPECTED
    assert (source.rows_read, source.documents) == (3, ())


def test_a_tsv_is_cut_at_tabs(tmp_path: Path) -> None:
    assert [item.question for item in read_table(write(tmp_path / "t.tsv")).items] == ["Who, a?", "Who, b?", "Who, c?"]


@pytest.mark.parametrize("column", ["references", "reference", "answers", "answer"])
def test_the_column_of_references_has_four_names(tmp_path: Path, column: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"question,{column}\nWho?,me\n")
    assert read_table(path).items[0].references == ("me",)


def test_an_item_without_id_keeps_its_name_when_rows_are_added(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,answer\nWho?,me\n")
    before = read_table(path).items
    path.write_text("question,answer\nWhy?,so\nWho?,me\nwho,I\n")
    after = read_table(path).items
    assert after[1] == before[0]
    assert after[2].id == f"{before[0].id}-2"
    assert after[2].cluster == before[0].cluster != after[0].cluster


def test_a_document_is_the_cluster_where_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "Who?", "answer": "me", "document": "a.txt"}\n{"question": "Why?", "answer": 7, "cluster": 3}\n')
    assert [(item.cluster, item.references) for item in read_table(path).items] == [("a.txt", ("me",)), ("3", ("7",))]


def test_gold_may_be_the_id_of_a_passage(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,question,answer,gold\nq,Who?,me,a.txt#2\n")
    passages = [Passage("a.txt#1", "a.txt", "One."), Passage("a.txt#2", "a.txt", "Two.")]
    assert map_gold(read_table(path).items, passages).passages == {"q": ("a.txt#2",)}


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ref,mr\nIt is good.,inform(x)\n")
    (item,) = read_table(path, columns={"question": "mr", "reference": "ref"}).items
    assert (item.question, item.references) == ("inform(x)", ("It is good.",))
    with pytest.raises(UserError, match="columns names 'query', which a table does not have; it has question"):
        read_table(path, columns={"query": "mr"})


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ("q,answer", "has no column question; columns found: q, answer"),
        ("question,text", "has no column references or reference or answers or answer; columns found: question, text"),
        ("question;answer", "the header is one column, 'question;answer', and seems to be cut by ';'"),
        ("question,answer,answer", "the header names 'answer' more than once"),
    ],
)
def test_a_missing_column_is_one_error_with_the_columns_found(tmp_path: Path, header: str, missing: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\na,b\nc,d\n")
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert missing in str(caught.value)
    assert caught.value.bad_rows == ()


def test_a_missing_column_of_a_parquet_file_is_one_error_too(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    polars.DataFrame({"q": ["Who?"], "answer": ["me"]}).write_parquet(path)
    with pytest.raises(DataError, match="has no column question; columns found: q, answer"):
        read_table(path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("b,Who?", "2 cells, the header has 4 (id, question, answer, answerable)"),
        ("b,,me,", "'question' is blank"),
        ("b,Who?,me,perhaps", "'answerable' is 'perhaps', expected true or false"),
        ("a,Who?,me,", "duplicate id 'a', first seen at"),
        ('b,"Who?,me,', "broken row: unexpected end of data"),
    ],
)
def test_a_bad_row_of_a_csv_is_named_with_its_line_after_cells_of_two_lines(tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f'id,question,answer,answerable\na,"Who\nelse?",me,\n{row}\n')
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert f"{path}:4: " in str(caught.value)
    assert reason in str(caught.value)
    assert len(read_table(path, bad_rows="skip").items) == 1


@pytest.mark.parametrize("value", [True, {"a": 1}, [["me"]]])
def test_a_reference_of_another_type_is_a_bad_row(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"question": "Who?", "references": value}))
    with pytest.raises(DataError, match=r"'references' holds .*, expected text"):
        read_table(path)


def test_a_row_without_a_reference_is_skipped_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,question,answer\na,Who?,me\nb,Why?, \n")
    source = read_table(path)
    assert [(one.line, one.item, one.reason) for one in source.skipped] == [(3, "b", "no reference")]


def test_a_file_of_another_kind_is_the_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"has the suffix \.xlsx; a table is one of \.jsonl, .*\.parquet"):
        read_table(path)


@pytest.mark.parametrize("content", [b"PAR1 but not really PAR1", b"question,answer\n"])
def test_a_file_that_is_not_parquet_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a Parquet file"):
        read_table(path)


def test_a_header_alone_holds_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,answer\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_table(path)
