"""Files of training rows: the five formats, every way in which a row can be broken, and how they are told. All rows here are made up."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from services.common import server
from services.common.errors import InvalidArgument
from services.trainer import formats, rows
from services.trainer.formats import Preference
from tests.unit.trainer.trainer_parts import questions, turns, write_rows

SAMPLES = Path(__file__).parents[3].parent / "shared" / "samples"

ASKED, ANSWERED = {"role": "user", "content": "where is the lamp"}, {"role": "assistant", "content": "in the harbour"}
SHORT = {"role": "system", "content": "be short"}
OTHER = {"role": "assistant", "content": "by the mill"}


def read(path: Path) -> list[list[dict[str, str]]]:
    return [[dict(message) for message in row.messages] for row in formats.conversations(path, "spec.dataset_uri")]


def prefer(path: Path) -> list[Preference]:
    return list(formats.preferences(path, "spec.dataset_uri"))


def refused(path: Path, preferences: bool = False) -> str:
    with pytest.raises(InvalidArgument) as error:
        prefer(path) if preferences else read(path)
    assert (error.value.reason, error.value.metadata["field"]) == ("DATASET_UNREADABLE", "spec.dataset_uri")
    assert error.value.message.startswith(f"{path}: ")
    return error.value.message.removeprefix(f"{path}: ")


def listed(path: Path, rows_: Iterable[object]) -> Path:
    """The same rows as one list over many lines."""
    path.write_text(json.dumps(list(rows_), indent=1))
    return path


ALPACA = {"instruction": "where is the lamp", "input": "", "output": "in the harbour"}
CONVERSATIONS: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    ({"messages": [ASKED, ANSWERED]}, [ASKED, ANSWERED]),
    ({"messages": [{"role": "developer", "content": "be short"}, ASKED, ANSWERED]}, [SHORT, ASKED, ANSWERED]),
    ({"messages": [ASKED, ANSWERED], "system": "be short"}, [SHORT, ASKED, ANSWERED]),
    (
        {"messages": [ASKED, {"role": "function", "name": "map", "content": "[1, 2]"}, ANSWERED], "id": 7, "cluster": None, "score": 0.5},
        [ASKED, {"role": "tool", "content": "[1, 2]"}, ANSWERED],
    ),
    (ALPACA, [ASKED, ANSWERED]),
    ({"instruction": "where is the lamp", "output": "in the harbour"}, [ASKED, ANSWERED]),
    (ALPACA | {"input": None, "system": "be short"}, [SHORT, ASKED, ANSWERED]),
    (ALPACA | {"input": "the valley", "system": ""}, [{"role": "user", "content": "where is the lamp\n\nthe valley"}, ANSWERED]),
    (
        {
            "conversations": [{"from": "human", "value": ASKED["content"]}, {"from": "gpt", "value": ANSWERED["content"]}],
            "id": "identity_0",
        },
        [ASKED, ANSWERED],
    ),
    (
        {
            "conversations": [
                {"from": "system", "value": SHORT["content"]},
                {"from": "user", "value": ASKED["content"]},
                {"from": "observation", "value": "no"},
                {"from": "assistant", "value": ANSWERED["content"]},
            ]
        },
        [SHORT, ASKED, {"role": "tool", "content": "no"}, ANSWERED],
    ),
    ({"conversations": [ASKED, ANSWERED]}, [ASKED, ANSWERED]),
    ({"prompt": "where is the lamp", "completion": "in the harbour"}, [ASKED, ANSWERED]),
    ({"prompt": [SHORT, ASKED], "completion": [ANSWERED], "label": True}, [SHORT, ASKED, ANSWERED]),
    ({"messages": [ASKED, ANSWERED], "prompt": "where is the lamp"}, [ASKED, ANSWERED]),
    # As written where several data sets were made one.
    (
        {"chosen": None, "rejected": None, "messages": [ASKED | {"from": None}, ANSWERED | {"tool_calls": None}], "tools": None},
        [ASKED, ANSWERED],
    ),
]


@pytest.mark.parametrize(("row", "expected"), CONVERSATIONS)
def test_a_row_of_each_format_is_a_conversation(tmp_path: Path, row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert read(write_rows(tmp_path / "train.jsonl", [row, row])) == [expected] * 2
    assert read(listed(tmp_path / "train.json", [row, row])) == [expected] * 2


PREFERENCES: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    ({"prompt": "where is the lamp", "chosen": "in the harbour", "rejected": "by the mill", "score_chosen": 8.5}, [ASKED]),
    ({"prompt": "where is the lamp", "chosen": "in the harbour", "rejected": "by the mill", "system": "be short"}, [SHORT, ASKED]),
    ({"prompt": [SHORT, ASKED], "chosen": [ANSWERED], "rejected": [OTHER]}, [SHORT, ASKED]),
    ({"prompt": [ASKED], "chosen": "in the harbour", "rejected": "by the mill"}, [ASKED]),
    ({"chosen": [SHORT, ASKED, ANSWERED], "rejected": [SHORT, ASKED, OTHER]}, [SHORT, ASKED]),
    ({"prompt": None, "chosen": [ASKED, ANSWERED], "rejected": [ASKED, OTHER]}, [ASKED]),
    # As in UltraFeedback: the prompt is said again, and the better conversation once more.
    (
        {
            "prompt": "where is the lamp",
            "chosen": [SHORT, ASKED, ANSWERED],
            "rejected": [SHORT, ASKED, OTHER],
            "messages": [ASKED, ANSWERED],
        },
        [SHORT, ASKED],
    ),
]


@pytest.mark.parametrize(("row", "prompt"), PREFERENCES)
def test_a_preference_is_a_prompt_and_two_answers(tmp_path: Path, row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    expected = Preference("pairs.jsonl:1", tuple(prompt), "in the harbour", "by the mill")
    assert prefer(write_rows(tmp_path / "pairs.jsonl", [row])) == [expected]


PAIR = PREFERENCES[0][0]
BROKEN: list[tuple[str | dict[str, Any], str]] = [
    ("{not json", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ('{"messages": [', "not JSON: Expecting value at column 15"),
    ('{"messages": []} {"messages": []}', "not JSON: Extra data"),
    ('{"score": NaN, "messages": []}', "not JSON: NaN is no number there"),
    ('{"score": -Infinity}', "not JSON: -Infinity is no number there"),
    ('{"score": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
    ("[" * 100_000, "nested too deeply"),
    ("null", "it is null, expected an object"),
    ('{"messages": null}', "`messages` is null, expected a list of messages"),
    ('{"messages": "hello"}', "`messages` is a text, expected a list of messages"),
    ('{"messages": []}', "`messages` is empty, expected a list of messages"),
    ('{"messages": ["hello"]}', "message 0 is no object"),
    ('{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot', expected one of system, user, assistant, tool"),
    ('{"messages": [{"role": ["user"], "content": "x"}]}', "role ['user'], expected"),
    ('{"messages": [{"role": "user"}]}', "message 0 has no text in `content`: it is missing"),
    ('{"messages": [{"role": "user", "content": null}]}', "message 0 has no text in `content`: it is null"),
    ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}', "message 0 has no text in `content`: it is a list"),
    ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "message 0 has half a character in `content`: '\\ud83d'"),
    ('{"messages": [{"role": "user", "content": "where"}]}', "the last message must be the assistant's"),
    ({"messages": [ASKED, ANSWERED], "tools": [{"type": "function"}]}, "it has `tools`, which are not trained on"),
    ({"messages": [ASKED, ANSWERED | {"tool_calls": [{"id": "1"}]}]}, "message 1 has `tool_calls`, which are not trained on"),
    ({"messages": [ASKED, ANSWERED | {"weight": 0}, ASKED, ANSWERED]}, "message 1 has weight 0"),
    ({"messages": [SHORT, ASKED, ANSWERED], "system": "be long"}, "it has two system messages"),
    ({"messages": [ASKED, ANSWERED], "system": 5}, "it has no text in `system`: it is a number"),
    (ALPACA | {"output": None}, "it has no text in `output`: it is null"),
    (ALPACA | {"input": {}}, "it has no text in `input`: it is an object"),
    (ALPACA | {"history": [["a", "b"]]}, "it has `history`"),
    ({"conversations": [{"from": "narrator", "value": "x"}]}, "message 0 has role 'narrator'"),
    ({"conversations": [{"from": "human", "value": None}]}, "message 0 has no text in `value`: it is null"),
    ({"prompt": "x", "completion": [ANSWERED]}, "`prompt` and `completion` must be two texts or two lists"),
    ({"prompt": [ASKED], "completion": [ASKED]}, "the last message must be the assistant's"),
    ({"prompt": [ASKED], "completion": []}, "`completion` is empty"),
    ({"prompt": "x", "completion": True}, "it has no text in `completion`: it is true or false"),
    ({"prompt": "x", "completion": "y", "label": False}, "`label` is false, which marks an answer not to be learnt"),
    ({"instruction": "x", "context": "", "response": "y"}, "no known format: it has 'instruction, context, response', expected one of"),
    ({"prompt": "x", "chosen": "y"}, "no known format: it has 'prompt, chosen', expected one of: chosen and rejected; messages;"),
]
BROKEN_PAIRS: list[tuple[str | dict[str, Any], str]] = [
    (PAIR | {"rejected": PAIR["chosen"]}, "`chosen` and `rejected` are the same"),
    (PAIR | {"rejected": None}, "it has no text in `rejected`: it is null"),
    (PAIR | {"prompt": None}, "there is no `prompt`"),
    (PAIR | {"prompt": [ASKED, ANSWERED]}, "the last message of the prompt must be the user's"),
    (PAIR | {"chosen": [ANSWERED, ASKED]}, "the last message must be the assistant's"),
    (PAIR | {"chosen": {"from": "gpt", "value": "x"}}, "it has no text in `chosen`: it is an object"),
    ({"chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED, ASKED, OTHER]}, "differ before their last message"),
    ({"prompt": [SHORT], "chosen": [ASKED, ANSWERED], "rejected": [ASKED, OTHER]}, "`chosen` does not go on from `prompt`"),
    ({"prompt": [{"role": "user"}], "chosen": "x", "rejected": "y"}, "message 0 of `prompt` has no text in `content`"),
    ({"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [ANSWERED]}, "`chosen` and `rejected` are the same"),
]


@pytest.mark.parametrize(("row", "why"), BROKEN)
def test_a_broken_row_is_named_by_file_line_and_reason(tmp_path: Path, row: str | dict[str, Any], why: str) -> None:
    # A good row of the same format: the first that shares a key.
    fields = {"messages": 1} if isinstance(row, str) or not row.keys() & {"conversations", "completion", "output"} else row
    good = json.dumps(next(good for good, _ in CONVERSATIONS if next(iter(good)) in fields))
    path = tmp_path / "broken.jsonl"
    path.write_text(f"{good}\n\n{row if isinstance(row, str) else json.dumps(row)}\n{good}\n")
    message = refused(path)
    assert message.startswith("1 of 3 rows cannot be used (2 can): broken.jsonl:3: ")
    assert why in message


@pytest.mark.parametrize(("row", "why"), BROKEN_PAIRS)
def test_a_broken_preference_is_named_as_well(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    message = refused(write_rows(tmp_path / "pairs.jsonl", [PAIR, row, PAIR]), preferences=True)
    assert message.startswith("1 of 3 rows cannot be used (2 can): pairs.jsonl:2: ")
    assert why in message


def test_every_broken_row_is_counted_and_the_first_twenty_are_named(tmp_path: Path) -> None:
    good = turns("where", "there")
    broken = [{"messages": [ASKED]} if number % 2 else good for number in range(100)]
    message = refused(write_rows(tmp_path / "d.jsonl", broken))
    reason = "the last message must be the assistant's"
    assert message.startswith(f"50 of 100 rows cannot be used (50 can): d.jsonl:2: {reason}; d.jsonl:4: {reason}; ")
    assert message.count("d.jsonl:") == 20
    assert message.endswith(f"; d.jsonl:40: {reason}; and 30 more")
    assert refused(write_rows(tmp_path / "d.jsonl", broken[:40])).endswith(f"; d.jsonl:40: {reason}")


def test_good_rows_come_before_the_error(tmp_path: Path) -> None:
    found = formats.conversations(write_rows(tmp_path / "d.jsonl", [turns("where", "there"), 1, turns("and", "here")]), "")
    assert [next(found).place, next(found).place] == ["d.jsonl:1", "d.jsonl:3"]
    with pytest.raises(InvalidArgument, match="1 of 3 rows cannot be used"):
        next(found)


def test_the_error_fits_into_what_grpc_lets_through(tmp_path: Path) -> None:
    name = "a-rather-long-name-of-a-file-of-training-rows.jsonl"
    long = {f"field {number} " + "ü" * 50: number for number in range(50)}
    message = refused(write_rows(tmp_path / name, [turns("where", "there")] + [long, {"messages": [{"role": "ü" * 9999}]}] * 500))
    assert message.endswith(" more")
    with pytest.raises(InvalidArgument) as error:
        read(tmp_path / name)
    assert len(server.to_status(error.value).SerializeToString()) + len(error.value.message.encode()) < 8192 - 512


def test_a_file_holds_one_format(tmp_path: Path) -> None:
    message = refused(write_rows(tmp_path / "mixed.jsonl", [turns("where", "there"), ALPACA, PAIR, turns("where", "there")]))
    assert message == (
        "2 of 4 rows cannot be used (2 can): mixed.jsonl:2: it is of format Alpaca, but the file began with messages: a file holds one "
        "format; mixed.jsonl:3: it is of format preference, but the file began with messages: a file holds one format"
    )


def test_data_of_the_other_method_say_what_to_do(tmp_path: Path) -> None:
    message = refused(write_rows(tmp_path / "pairs.jsonl", [PAIR]))
    assert message.startswith("it holds preference rows, from which method dpo learns: choose that, or give rows with one answer")
    message = refused(write_rows(tmp_path / "train.jsonl", [ALPACA]), preferences=True)
    assert message.startswith("it holds Alpaca rows, but method dpo learns from rows of `prompt`, `chosen` and `rejected`")


def test_bytes_that_are_no_text_are_a_broken_row(tmp_path: Path) -> None:
    path, good = tmp_path / "latin.jsonl", json.dumps(turns("where", "there")).encode()
    path.write_bytes(good + b'\n{"messages": "\xe4"}\n')
    assert "(1 can): latin.jsonl:2: not UTF-8: byte 0xe4 at offset 14 of the line" in refused(path)
    path.write_bytes(b"[" + good + b',\n{"id": "\xe4", "messages": []},\n' + good + b"]")
    assert "(2 can): latin.jsonl:2, row 2: not UTF-8: byte 0xe4" in refused(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it holds no rows: give at least one example"),
        (b"\n \n", "it holds no rows"),
        (b" [ ]\n", "it holds no rows"),
        (b"\x1f\x8b\x08\x00", "it is packed by gzip: unpack it"),
        (b"PAR1\x15\x04", "it is Parquet: write it as JSON lines"),
        ("[]".encode("utf-16"), "it is UTF-16: save it as UTF-8"),
    ],
)
def test_a_file_without_rows_says_what_it_is(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "data").write_bytes(content)
    assert refused(tmp_path / "data").startswith(why)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.jsonl") == "No such file or directory"
    assert refused(tmp_path) == "Is a directory"


def test_marks_of_byte_order_and_line_ends_of_windows_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps({"messages": [ASKED, ANSWERED]}).encode()
    for number, content in enumerate((line + b"\r\n\r\n" + line, b"[" + line + b",\r\n" + line + b"]\r\n")):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(b"\xef\xbb\xbf" + content)
        assert read(path) == [[ASKED, ANSWERED]] * 2


GOOD = json.dumps(turns("where", "there"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"[{GOOD},\n {GOOD}", "1 of 3 rows cannot be used (2 can): d.json:2: not JSON: the list has no end"),
        (
            f"[{GOOD},\n",
            "1 of 2 rows cannot be used (1 can): d.json:2, row 2: not JSON: Expecting value in line 2; what follows was not read",
        ),
        (f"[{GOOD},\n{{\n'a': 1}}]", "(1 can): d.json:2, row 2: not JSON: Expecting property name enclosed in double quotes in line 3"),
        (f"[{GOOD}\n{GOOD}]", "(1 can): d.json:2: not JSON: expected a comma or the end of the list after row 1"),
        (f"[{GOOD},]", "(1 can): d.json:1: not JSON: expected a comma or the end of the list after row 1"),
        (f"[{GOOD}]\n{GOOD}", "(1 can): d.json:2: not JSON: more text after the list; is it JSON lines?"),
        (f"[{GOOD},\n7,\n{GOOD}]", "1 of 3 rows cannot be used (2 can): d.json:2, row 2: it is a number"),
        (f"[{GOOD}, NaN, {GOOD}]", "1 of 3 rows cannot be used (2 can): d.json:1, row 2: not JSON: NaN is no number there"),
        ("[" + "[" * 100_000, "1 of 1 rows cannot be used (0 can): d.json:1, row 1: nested too deeply"),
        ("[" + "1" * 5000 + "]", "d.json:1, row 1: not JSON: Exceeds the limit"),
    ],
)
def test_a_list_tells_where_it_is_broken(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "d.json").write_text(text)
    assert why in refused(tmp_path / "d.json")


def test_a_list_may_be_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"messages": [ASKED, {"role": "assistant", "content": 'a "quoted" \\ ä\n😀'}], "numbers": [-1.5e-7, 12345, True, None, {}]}
    lines = json.dumps(row, indent=1).count("\n") + 1
    for ascii_only in (True, False):
        (tmp_path / "d.json").write_text(json.dumps([row] * 20, ensure_ascii=ascii_only, indent=1), encoding="utf-8")
        for piece in range(1, 40):
            monkeypatch.setattr(rows, "_PIECE", piece)
            found = list(rows.rows(tmp_path / "d.json"))
            assert [entry.value for entry in found] == [row] * 20
            assert [entry.place for entry in found] == [f"d.json:{2 + number * lines}, row {number + 1}" for number in range(20)]


def test_a_row_that_never_ends_is_refused_without_reading_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROW_LIMIT", 1000)
    monkeypatch.setattr(rows, "_PIECE", 100)
    long = json.dumps(turns("where", "there " * 1000))
    (tmp_path / "d.jsonl").write_text(f"{GOOD}\n{long}\n{GOOD}\n{long}")
    message = refused(tmp_path / "d.jsonl")
    assert message == "2 of 4 rows cannot be used (2 can): d.jsonl:2: longer than 16 MiB; d.jsonl:4: longer than 16 MiB"
    (tmp_path / "d.json").write_text(f"[{GOOD},\n{long},{GOOD}]")
    assert "(1 can): d.json:2, row 2: not JSON: a value longer than 16 MiB" in refused(tmp_path / "d.json")


@pytest.mark.parametrize("write", [write_rows, listed])
def test_a_hundred_thousand_rows_are_not_held(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "data", questions(100_000))
    assert path.stat().st_size > 10_000_000
    found = formats.conversations(path, "")
    tracemalloc.start()
    try:
        # Tracing is slow; ten thousand rows are several times the bound.
        assert sum(1 for _ in islice(found, 10_000)) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
    assert sum(1 for _ in found) == 90_000


def test_a_list_reads_as_its_lines_do(tmp_path: Path) -> None:
    data = questions(500)
    assert read(write_rows(tmp_path / "d.jsonl", data)) == read(listed(tmp_path / "d.json", data)) == [row["messages"] for row in data]


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the public samples are not here")
def test_public_sharegpt_rows_are_read() -> None:
    found = list(formats.conversations(SAMPLES / "sharegpt_dummy.json", ""))
    assert len(found) == 500
    assert found[0].place == "sharegpt_dummy.json:2, row 1"
    assert found[0].messages[0] == {"role": "user", "content": "Who are you?"}
    assert {message["role"] for row in found for message in row.messages} == {"user", "assistant"}
