"""Labels of people: every accepted form reads alike, and a row that cannot be used is refused with its file, line and reason."""

import json
from pathlib import Path

import pytest

from flows.data.labels import Label, read_labels
from flows.errors import DataError, UserError

HEADER = "item,contestant,criterion,score,sample,annotator,probability"


def written(tmp_path: Path, *rows: str, header: str = HEADER) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_row_is_a_label_with_its_place(tmp_path: Path) -> None:
    path = written(tmp_path, "q1,raft-300-s1,accuracy,4,0,ann,0.25", "q2,base,accuracy,2.5,,,0.5")
    assert read_labels(path) == (
        Label("q1", "raft-300-s1", "accuracy", 4.0, 0, "ann", 0.25, str(path), 2),
        Label("q2", "base", "accuracy", 2.5, None, "", 0.5, str(path), 3),
    )


def test_only_four_columns_are_needed_and_others_are_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "x,q1,base,accuracy,4", header="remark,item,contestant,criterion,score")
    assert [(label.item, label.score, label.sample, label.annotator, label.probability) for label in read_labels(path)] == [
        ("q1", 4.0, None, "", None)
    ]


def test_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    rows = [
        {"item": 7, "contestant": "base", "criterion": "accuracy", "score": 3, "annotator": "ann"},
        {"item": "8", "contestant": "base", "criterion": "accuracy", "score": "5", "sample": 1},
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_labels(path)
    assert [(label.item, label.score, label.sample, label.line) for label in found] == [("7", 3.0, None, 1), ("8", 5.0, 1, 2)]


def test_several_people_may_score_one_answer_and_no_one_twice(tmp_path: Path) -> None:
    both = ("q1,base,accuracy,4,,ann,", "q1,base,accuracy,3,,bob,")
    assert [label.annotator for label in read_labels(written(tmp_path, *both))] == ["ann", "bob"]
    with pytest.raises(DataError) as refused:
        read_labels(written(tmp_path, *both, "q1,base,accuracy,5,,ann,"))
    (bad,) = refused.value.bad_rows
    assert (bad.line, "by 'ann'" in bad.reason, "line 2" in bad.reason) == (4, True, True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("q1,base,accuracy,good,,,", "'score' is 'good', expected a number"),
        ("q1,base,accuracy,,,,", "'score' is blank"),
        ("q1,base,accuracy,nan,,,", "expected a finite number"),
        (",base,accuracy,4,,,", "'item' is blank"),
        ("q1,base,,4,,,", "'criterion' is blank"),
        ("q1,base,accuracy,4,1.5,,", "'sample' is 1.5"),
        ("q1,base,accuracy,4,-1,,", "'sample' is -1"),
        ("q1,base,accuracy,4,,,0", "'probability' is 0"),
        ("q1,base,accuracy,4,,,1.2", "'probability' is 1.2"),
        ("q1,base,accuracy", "3 cells, the header has 7"),
        ("q9,base,accuracy,4,,,0.5", "'probability' is given, unlike at line 2"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_line_and_reason(tmp_path: Path, row: str, reason: str) -> None:
    path = written(tmp_path, "q0,base,accuracy,4,,,", row)
    with pytest.raises(DataError) as refused:
        read_labels(path)
    (bad,) = refused.value.bad_rows
    assert (bad.file, bad.line) == (str(path), 3)
    assert reason in bad.reason
    assert "bad_rows: skip" not in str(refused.value)


def test_one_item_has_one_probability(tmp_path: Path) -> None:
    path = written(tmp_path, "q1,base,accuracy,4,,,0.5", "q1,raft,accuracy,4,,,0.25")
    with pytest.raises(DataError, match="an item is drawn with one probability"):
        read_labels(path)


def test_a_missing_column_is_said_once(tmp_path: Path) -> None:
    path = written(tmp_path, "q1,base,4", "q2,base,3", header="item,contestant,score")
    with pytest.raises(DataError, match="has no column criterion; columns found: item, contestant, score"):
        read_labels(path)


def test_a_file_without_rows_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        read_labels(written(tmp_path))
    with pytest.raises(UserError, match=r"labels\.xlsx has the suffix \.xlsx"):
        read_labels(tmp_path / "labels.xlsx")
    with pytest.raises(UserError, match="There is no file"):
        read_labels(tmp_path / "none.csv")
