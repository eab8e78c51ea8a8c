"""Files that are broken as files: every reader says which file, which line, why, and how many rows it had read."""

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.data.readers import READERS
from flows.errors import BadRow, DataError, UserError

ROWS = [{"question": f"who is number {n}", "answer": [str(n)]} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
BIOASQ = json.dumps({"questions": [{"id": str(n), "type": "yesno", "body": f"Is {n}?", "exact_answer": "yes"} for n in range(3)]}, indent=1)
ANSWER = {"answer": {"unanswerable": False, "extractive_spans": ["é"], "yes_no": None, "free_form_answer": "", "evidence": []}}
QASPER = json.dumps(
    {
        f"p{p}": {
            "title": "T",
            "abstract": "A",
            "full_text": [],
            "qas": [{"question": f"Q{p}?", "question_id": f"q{p}", "answers": [ANSWER]}],
        }
        for p in range(3)
    },
    indent=1,
    ensure_ascii=False,
)
GOOD = {"nq_open": LINES, "bioasq": BIOASQ, "qasper": QASPER, "table": LINES}

Name = Callable[[str], Path]


@pytest.fixture(params=sorted(GOOD))
def reader(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def named(tmp_path: Path) -> Name:
    return lambda reader: tmp_path / ("data.jsonl" if reader in ("nq_open", "table") else "data.json")


def test_every_reader_is_known_by_its_name() -> None:
    assert set(READERS) == {"beir", "bioasq", "nq", "nq_open", "qasper", "table"}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip().encode(),
        lambda text: gzip.compress(text.encode()),
    ],
    ids=["plain", "byte order mark", "UTF-16", "CRLF", "no last line end", "gzip"],
)
def test_the_same_rows_are_read_from_every_form_of_text(named: Name, reader: str, change: Callable[[str], bytes]) -> None:
    path = named(reader)
    path.write_bytes(change(GOOD[reader]))
    source = READERS[reader](path)
    assert (len(source.items), source.rows_read) == (3, 3)
    assert reader != "qasper" or source.items[0].references == ("é",)


@pytest.mark.parametrize("content", [b"", b" \n\n", codecs.BOM_UTF8, gzip.compress(b"")], ids=["nothing", "blank", "mark", "gzip"])
def test_an_empty_file_is_an_error(named: Name, reader: str, content: bytes) -> None:
    path = named(reader)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.json") as caught:
        READERS[reader](path)
    assert caught.value.rows_read == 0


def test_a_file_cut_in_a_row_tells_the_line_and_the_rows_before_it(named: Name, reader: str) -> None:
    path = named(reader)
    text = GOOD[reader]
    path.write_text(text[: text.rindex('"', 0, text.rindex("]")) - 1], encoding="utf-8")
    with pytest.raises(DataError, match="ends too early") as caught:
        READERS[reader](path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert caught.value.bad_rows[-1].line in range(len(lines) - 1, len(lines) + 1)
    # The cut row of a file of lines is a row; the cut entry of an object is not.
    assert caught.value.rows_read == (3 if path.suffix == ".jsonl" else 2)


def test_a_byte_that_is_no_utf_8_is_named_with_its_line(named: Name, reader: str) -> None:
    path = named(reader)
    lines = GOOD[reader].encode().split(b"\n")
    lines[1] = lines[1].replace(b'"', b'"\xe9', 1)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"not valid UTF-8 \(byte 0xe9 at offset \d+\); save the file as UTF-8") as caught:
        READERS[reader](path)
    assert caught.value.bad_rows[0].line == 2


def test_a_corrupt_gzip_file_is_an_error(named: Name, reader: str) -> None:
    path = named(reader)
    path = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.compress(GOOD[reader].encode())[:-12])
    with pytest.raises(DataError, match=r"gzip file is corrupt[\s\S]*gzip -t"):
        READERS[reader](path)


@pytest.mark.parametrize("row", ["[1, 2]", '"text"', "3", "null"])
def test_a_row_of_another_type_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES + row + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:4: the row is .*, expected an object"):
        READERS["nq_open"](path)


def test_a_missing_file_is_the_users_mistake(tmp_path: Path, reader: str) -> None:
    with pytest.raises(UserError, match=r"There is no file .*: check the path") as caught:
        READERS[reader](tmp_path / "none.jsonl")
    assert caught.value.exit_code == 2


def test_a_folder_without_files_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no file named \*\.jsonl or \*\.ndjson"):
        READERS["nq"](tmp_path)


def test_json_lines_given_as_one_json_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(LINES)
    with pytest.raises(DataError, match=r"a\.json:2: .*is it JSON lines\?"):
        READERS["bioasq"](path)


def test_nesting_without_end_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": ' + "[" * 200_000)
    with pytest.raises(DataError, match="broken JSON"):
        READERS["nq_open"](path)


def test_bad_rows_are_skipped_only_when_good_ones_are_left(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": 1}\n{"question": 2}\n')
    with pytest.raises(DataError, match="2 rows cannot be used"):
        READERS["nq_open"](path, bad_rows="skip")


def test_a_message_lists_the_first_bad_rows_and_counts_the_rest() -> None:
    rows: tuple[Any, ...] = tuple(BadRow("f.csv", n, "why") for n in range(2, 10))
    lines = str(DataError("f.csv: 8 rows cannot be used", 20, rows, "Correct them.")).splitlines()
    assert lines[0] == "f.csv: 8 rows cannot be used (20 rows read)"
    assert lines[1] == "  f.csv:2: why"
    assert lines[-2:] == ["  ... and 3 more", "Correct them."]
