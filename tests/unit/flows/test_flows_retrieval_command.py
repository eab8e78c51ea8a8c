"""`tunetrial retrieval` as a person or a program calls it, as far as it goes without a service; and how its result looks."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import printing

EXAMPLE = Path(__file__).parents[3] / "examples" / "retrieval" / "data"


def retrieval(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from flows.cli import main; sys.argv[0] = 'tunetrial'; main()"
    command = [sys.executable, "-c", code, "retrieval", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def broken(tmp_path: Path, file: str, text: str | None) -> Path:
    """The example with one file changed, or taken away."""
    folder = tmp_path / "data"
    for path in EXAMPLE.rglob("*.*"):
        copy = folder / path.relative_to(EXAMPLE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("corpus.jsonl", None, "holds no corpus.jsonl"),
        ("qrels/test.tsv", None, "has no split 'test', but: train."),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "judges no question"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nbioasq-q001\tnowhere\t1\n",
            "test.tsv:2: there is no document 'nowhere' in the corpus",
        ),
        ("queries.jsonl", '{"_id": "q1"\n', "queries.jsonl:1: broken JSON"),
    ],
)
def test_a_broken_folder_is_a_users_mistake_said_before_anything_starts(tmp_path: Path, file: str, text: str | None, said: str) -> None:
    done = retrieval(str(broken(tmp_path, file, text)), "--json", cwd=tmp_path)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["exit_code"]) == (2, 2)
    assert said in error["message"]
    assert not (tmp_path / ".tunetrial" / "retriever").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.yaml",), "none.yaml: no such file"),
        (("study.yaml",), "grid.mods: unknown key; did you mean 'mode'?"),
        (("split.yaml",), "has no split 'tset', but: test, train. Did you mean 'test'?"),
        ((str(EXAMPLE), "--json", "--csv"), "give --csv or --json, not both"),
    ],
)
def test_a_mistake_is_exit_code_2_with_a_sentence_and_no_traceback(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    data = f"data: {{reader: beir, path: {EXAMPLE}"
    (tmp_path / "study.yaml").write_text(f"name: s\n{data}}}\ngrid: {{mods: [dense]}}\n")
    (tmp_path / "split.yaml").write_text(f"name: s\n{data}, split: tset}}\n")
    done = retrieval(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stdout + " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def condition(name: str, k: int = 10, queries: int = 20, **more: Any) -> dict[str, Any]:
    interval = {"low": 0.412345, "high": 0.612345, "level": 0.95}
    metrics = [
        {"name": measure, "k": depth, "mean": 0.512345, "interval": interval} for measure in ("ndcg", "recall", "mrr") for depth in (10, k)
    ]
    return {"name": name, "k": k, "queries": queries, "median_ms": 7.123, "metrics": metrics, **more}


def printed(width: int | None, conditions: list[dict[str, Any]], **more: Any) -> str:
    differences = [
        {"condition": one["name"], "baseline": "lexical", "mean": -0.0123, "interval": {"low": -0.04, "high": 0.0149, "level": 0.95}}
        for one in conditions[1:]
    ]
    found = {
        "measure": {"name": "ndcg", "k": 10},
        "level": 0.95,
        "conditions": conditions,
        "differences": differences,
        "baseline": "lexical",
        "best": "lexical",
        "not_told_apart": [],
        "sentence": "lexical finds most: nDCG@10 0.512",
        "left_out": [],
        "notes": [],
        "asked": 20,
        "measured": 20,
        "without_gold": 0,
        "counts": {"documents": 3},
        "created": "2026-02-03T10:11:12+00:00",
        **more,
    }
    file = io.StringIO()
    terminal = {} if width is None else {"width": width, "force_terminal": True, "color_system": None}
    printing.retrieval(Console(file=file, soft_wrap=True, **terminal), found, Path("runs/x"), again=False)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("width", [None, 80, 120])
def test_every_condition_has_its_measures_with_intervals_and_its_difference(width: int | None) -> None:
    lines = printed(width, [condition("lexical"), condition("hybrid + rerank")]).splitlines()
    assert lines[0].split() == ["condition", "nDCG@10", "recall@10", "MRR@10", "ms", "difference"]
    assert lines[1].split() == ["lexical", "0.512", "0.512", "0.512", "7.1"]
    assert lines[3].split() == ["hybrid", "+", "rerank", "0.512", "0.512", "0.512", "7.1", "-0.012"]
    assert "[0.41, 0.61]" in lines[4]
    assert "[-0.040, +0.015]" in lines[4]
    assert all(len(line.rstrip()) <= 80 for line in lines[:5])


def test_a_long_name_stays_in_one_line_where_there_is_no_terminal() -> None:
    name = "hybrid + rerank · tokens, max tokens 120 · some/encoder-with-a-long-name"
    assert any(line.startswith(name) for line in printed(None, [condition("lexical"), condition(name)]).splitlines())


def test_numbers_of_questions_and_k_stand_in_the_table_where_they_differ() -> None:
    out = printed(None, [condition("lexical · k 3", k=3, queries=20), condition("lexical · k 5", k=5, queries=12)])
    assert out.splitlines()[0].split() == ["condition", "nDCG@10", "recall@k", "MRR@10", "queries", "ms", "difference"]
    assert "@3 0.512" in out
    assert " 12 " in out


def test_what_is_missing_is_a_dash_and_names_are_no_markup() -> None:
    nothing = condition("[red]odd[/] · x", median_ms=None)
    nothing["metrics"] = [{**metric, "mean": None, "interval": None} for metric in nothing["metrics"]]
    out = printed(None, [condition("lexical"), nothing], left_out=["hybrid + rerank"], notes=["a note [1]"], without_gold=4)
    assert "[red]odd[/] · x" in out
    assert [word for word in out.splitlines()[3].split() if word == "-"] == ["-"] * 4
    assert "left out: hybrid + rerank, for the retriever has no reranker (TUNETRIAL_RERANKER)" in out
    assert "note: a note [1]" in out
    assert "4 have nothing known to find" in out
