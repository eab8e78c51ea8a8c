"""`tunetrial compare` as a person or a program calls it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from run_folders import write_run

from flows.cli import main
from flows.comparison.compare import compare
from flows.comparison.screen import show
from flows.finished_run import find_run

COUNT = 40


def values(seed: int, mean: float) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).normal(mean, 0.3, COUNT)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    base = values(1, 3.0)
    for name, tuned, spec in (("small-1", values(2, 3.5), {"prompt": {"template": "plain/v1"}}), ("small-2", values(3, 2.2), {})):
        scores = {"accuracy": {"base": base, "tuned": tuned}, "completeness": {"base": base, "tuned": base}}
        rubrics = {"completeness": f"{name}-completeness"}
        write_run(tmp_path / "runs" / name, scores, texts={"tuned": [name] * COUNT}, spec=spec, rubrics=rubrics)
    return tmp_path / "runs"


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["tunetrial", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_everything_stands_in_the_text(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(monkeypatch, capsys, "small-1", "small-2", "--runs", str(runs))
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "first small-1, finished 2026-02-03 10:11 UTC"
    assert lines[1].startswith("tuned is BETTER than base on accuracy")
    assert 'spec: prompt {"template": "plain/v1"} -' in lines
    assert f"{COUNT} in both" in lines
    assert "contrasts on completeness: the rubrics differ (small-1- and small-2-)" in lines
    place = lines.index("accuracy, second minus first")
    assert lines[place + 1] == "arm first second difference p (Holm) same answers"
    base, tuned = lines[place + 2 : place + 4]
    assert base.endswith(f"0.00 [0.00, 0.00] - unmoved {COUNT}/{COUNT}")
    assert tuned.endswith(f"< 0.001 lower 0/{COUNT}")
    assert "verdicts: 1 of 2 changed" in lines
    assert any(line.startswith("accuracy (primary) tuned BETTER 0.") and "tuned WORSE -0." in line for line in lines)


def test_json_holds_every_number(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(monkeypatch, capsys, "small-1", "small-2", "--runs", str(runs), "--json")
    said = json.loads(out)
    assert (code, said["comparable"]) == (0, True)
    assert [move["reading"] for move in said["moves"]] == ["unmoved", "lower"]
    assert said["moves"][1]["interval"]["high"] < 0
    assert len(said["moves"][1]["most_changed"]) == 5
    assert said["items"] == {"common": COUNT, "changed": 0, "only_first": 0, "only_second": 0}


@pytest.mark.parametrize("arguments", [("small-1", "small-1"), ("small-1", "small-9")])
def test_a_mistake_is_exit_code_2(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, out, err = called(monkeypatch, capsys, *arguments, "--runs", str(runs))
    assert (code, out) == (2, "")
    assert arguments[1] in err


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_tables_that_keep_every_number(runs: Path, width: int) -> None:
    found = compare(find_run("small-1", runs), find_run("small-2", runs))
    file = io.StringIO()
    show(Console(file=file, width=width, force_terminal=True, color_system=None, soft_wrap=True), found)
    table = file.getvalue().split("accuracy, second minus first")[1].split("over 40 items")[0]
    assert all(len(line.rstrip()) <= width for line in table.splitlines())
    move = found.moves[1]
    assert move.interval is not None
    assert "..." not in table
    assert "\u2026" not in table
    for number in (move.first, move.second, move.difference, move.interval.low, move.interval.high):
        assert f"{number:.2f}" in table
