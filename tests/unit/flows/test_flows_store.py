"""Artifacts are there whole or not at all; rows survive a kill."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.records import Answer, Contestant, Document, Evidence, Item, Judgement, Metric, Section
from flows.store import Rows, Store, canonical, digest, to_table

RECORDS = [
    Item("i1", "Wo?", ("dort", "da"), "c1", "list", (Evidence("d1", "text"),), answerable=False),
    Document("d1", "Title", (Section("", ("p1", "p2")), Section("H", ()))),
    Contestant("raft-10", "raft", "small", "raft", 10, 1),
    Answer("base", "i1", 0, None, False, "length", 1, 2, 3.5, None, "h", ("p",), (), (), "prompt too long"),
    Judgement("base", "i1", 0, "accuracy", 0, None, "no idea", 0, 0, 0.5, "unparsed", (Metric("token_f1", 0.5),)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_went_in(tmp_path: Path, record: object) -> None:
    store = Store(str(tmp_path))
    store.write_records("kind", "key", "rows.parquet", type(record), [record])
    assert store.read_records("kind", "key", "rows.parquet", type(record)) == (record,)


def test_an_empty_table_keeps_its_column_types() -> None:
    assert to_table(Answer, []).schema == to_table(Answer, [RECORDS[3]]).schema


def test_an_artifact_without_its_last_file_counts_as_absent(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("kind", "key", "a.json", 1)
    assert not store.has("kind", "key")
    store.finish("kind", "key", {"from": "this"})
    assert store.has("kind", "key")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write_json("kind", "key", "a.json", "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._fs, "mv", full)  # the disk's own failure cannot be had in a test
    with pytest.raises(OSError, match="No space"):
        store.write_json("kind", "key", "a.json", "new")
    assert store.read_json("kind", "key", "a.json") == "old"
    assert [path.name for path in (tmp_path / "kind" / "key").iterdir()] == ["a.json"]


def test_rows_are_found_again_and_unflushed_ones_are_not(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = Rows(store, "answers", "g", batch=2)
    for number in range(3):
        rows.add(f"k{number}", {"n": number})
    again = Rows(store, "answers", "g")
    assert [f"k{number}" in again for number in range(3)] == [True, True, False]
    rows.flush()
    assert Rows(store, "answers", "g")["k2"] == {"n": 2}


def test_two_writers_of_the_same_rows_lose_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one, two = Rows(store, "answers", "g"), Rows(store, "answers", "g")
    one.add("a", 1)
    two.add("b", 2)
    one.flush()
    two.flush()
    both = Rows(store, "answers", "g")
    assert (both["a"], both["b"]) == (1, 2)


def test_equal_values_have_equal_addresses_and_others_do_not() -> None:
    assert digest({"a": 1, "b": [2, "ü"]}) == digest({"b": [2, "ü"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert canonical({"b": "ü", "a": None}) == '{"a":null,"b":"ü"}'
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_a_field_without_a_column_type_is_a_clear_error() -> None:
    @dataclass
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="complex"):
        to_table(Odd, [])
