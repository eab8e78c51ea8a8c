"""A trial on files in each of the true formats, and on a table with a folder of texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from trials import QUICKSTART, finish, run_trial

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_api")]


def spec(name: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "data": {"test_items": 24, **data},
        "retrieval": {"chunk": {"max_tokens": 80}},
        "models": {"small": {"base": str(QUICKSTART / "base")}},
        "decoding": {"max_tokens": 16},
        "arms": {"base": {"model": "small"}, "closed-book": {"model": "small", "rag": False}},
        "analysis": {"control": "base", "primary": {"arm": "closed-book"}, "bootstrap": 1000},
        **more,
    }


def scores(outcome: dict[str, Any]) -> dict[str, float]:
    rows = pq.read_table(Path(outcome["folder"]) / "judgements.parquet").to_pylist()
    accuracy = [row for row in rows if row["criterion"] == "accuracy"]
    arms = {row["contestant"] for row in accuracy}
    return {arm: sum(row["score"] for row in accuracy if row["contestant"] == arm) / 24 for arm in arms}


@pytest.mark.parametrize(("reader", "file"), [("bioasq", "bioasq.json"), ("nq", "nq.jsonl"), ("qasper", "qasper.json")])
def test_a_trial_runs_on_a_true_format(home: Path, tmp_path: Path, reader: str, file: str) -> None:
    outcome = run_trial(spec(reader, {"reader": reader, "path": str(QUICKSTART / "data" / file)}), tmp_path, "--home", str(home))
    means = scores(outcome)
    # The base reads: shown the passages it must answer far better than from memory.
    assert means["base"] > means["closed-book"] + 1
    assert outcome["verdict"] == "WORSE"
    assert Path(outcome["report"]).stat().st_size > 10_000


def test_a_trial_runs_on_a_table_and_a_folder_of_texts(home: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    names = ["Lomira", "Bakodu", "Tazopi", "Revuna", "Kisolo", "Dafepa", "Gonimu", "Zuteba", "Pilaro", "Nevoka", "Sumeti", "Fobara"]
    with (tmp_path / "questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "reference", "cluster"])
        for number, name in enumerate(names):
            place, year = names[number - 1], 1200 + 37 * number
            (texts / f"{name}.md").write_text(f"# {name}\n\nThe town {name} dates from {year}.\n\nThe capital of {name} is {place}.\n")
            writer.writerow([f"When was {name} founded?", year, name])
            writer.writerow([f"What is the capital of {name}?", place, name])
    outcome = run_trial(spec("own", {"reader": "table", "path": "questions.csv", "corpus": "texts"}), tmp_path, "--home", str(home))
    means = scores(outcome)
    assert means["base"] > means["closed-book"]
    report = json.loads((Path(outcome["folder"]) / "report.json").read_text())
    assert report["counts"]["documents"] == len(names)


def test_few_shot_and_fine_tuned_arms_answer_beside_the_base(home: Path, tmp_path: Path) -> None:
    arms = {
        "base": {"model": "small"},
        "shots": {"model": "small", "shots": 2},
        **{name: {"adapter": name} for name in ("bare", "raft", "soft")},
    }
    training: dict[str, dict[str, Any]] = {
        name: {"model": "small", "context": name.replace("bare", "none"), "sizes": [16], "seeds": [1, 2], "max_steps": 3, "batch_size": 8}
        for name in ("bare", "raft")
    }
    # On questions that the base, which knows no fact by heart, does not know.
    training["bare"]["knowledge"] = {"exemplar_sets": 2, "shots": 2, "samples": 2, "max_tokens": 8, "keep": ["weakly_known", "unknown"]}
    # By the epoch that was best on documents kept from training; and a soft prompt beside the adapters.
    training["raft"] |= {"max_steps": 6, "evaluation": 0.3, "keep_best": True}
    training["soft"] = {"model": "small", "method": "prompt_tuning", "virtual_tokens": 4, "sizes": [16], "max_steps": 3, "batch_size": 8}
    analysis = {"control": "base", "primary": {"arm": "raft", "size": 16}, "bootstrap": 1000, "margin": 5}
    data = {"reader": "bioasq", "path": str(QUICKSTART / "data" / "bioasq.json")}
    wanted = spec("tuned", data, arms=arms, training=training, analysis=analysis, promote="production")
    outcome = run_trial(wanted, tmp_path, "--home", str(home))
    # A margin wider than the scale lets the gate pass, and the alias is set to the first of the two seeds.
    assert outcome["gate"] == "pass"
    adapters = json.loads((Path(outcome["folder"]) / "report.json").read_text())["adapters"]
    assert [outcome["promoted"]] == [row["name"] for row in adapters if (row["family"], row["seed"]) == ("raft", 1)]
    code, out, _ = finish("models", "--json", "--home", str(home), cwd=tmp_path)
    served = {row["name"]: row for row in json.loads(out)}
    assert served["production"]["target"] == outcome["promoted"]
    assert served[outcome["promoted"]]["state"] == "verified"
    for command in (("alias", "production", "small"), ("alias", "production", "--back")):
        code, out, err = finish(*command, "--json", "--home", str(home), cwd=tmp_path)
        assert code == 0, err
    assert json.loads(out)["target"] == outcome["promoted"]
    code, _, err = finish("alias", "production", "nobody", "--home", str(home), cwd=tmp_path)
    assert code == 2
    assert "nobody" in err
    answers = pq.read_table(Path(outcome["folder"]) / "answers.parquet").to_pylist()
    contestants = {row["contestant"] for row in answers}
    assert contestants == {"base", "shots", "bare-s1", "bare-s2", "raft-s1", "raft-s2", "soft-s1"}
    assert len(answers) == 24 * len(contestants)
    report = json.loads((Path(outcome["folder"]) / "report.json").read_text())
    assert len(report["proofs"]) == 5
    assert all(proof["difference_from_base"] > proof["base_noise"] for proof in report["proofs"])
    tags = [json.loads(line) for line in (Path(outcome["folder"]) / "knowledge.jsonl").open(encoding="utf-8")]
    assert outcome["knowledge"]["bare"] == report["knowledge"][0]["classes"]
    assert sum(outcome["knowledge"]["bare"].values()) == len(tags)
    assert sum(tag["kept"] for tag in tags) == sum(tag["class"] in ("weakly_known", "unknown") for tag in tags) >= 16
    assert {row["examples"] for row in report["adapters"] if row["family"] == "bare"} == {16}

    # Repeated it does no work; with one arm changed, only that arm is asked again.
    code, out, _ = finish("run", "trial.yaml", "--json", "--home", str(home), cwd=tmp_path)
    assert (code, json.loads(out)) == (0, outcome)
    before = set((home / "store" / "answers").rglob("*.jsonl"))
    wanted["arms"]["shots"] = {"model": "small", "shots": 1}
    changed = run_trial(wanted, tmp_path, "--home", str(home))
    assert changed["folder"] != outcome["folder"]
    new = [
        json.loads(line) for path in set((home / "store" / "answers").rglob("*.jsonl")) - before for line in path.read_text().splitlines()
    ]
    assert len(new) == 24
