"""The command as a person or a program calls it: exit codes, JSON, clear words. Starts no service."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parents[3] / "examples"
QUICKSTART = EXAMPLES / "quickstart"


def tunetrial(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from flows.cli import main; sys.argv[0] = 'tunetrial'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def quickstart(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((QUICKSTART / "trial.yaml").read_text())
    for source in spec["data"]["sources"]:
        source["path"] = str(QUICKSTART / source["path"])
    spec["models"]["small"]["base"] = str(QUICKSTART / "base")
    for path, value in changes.items():
        place = spec
        *parents, last = path.split("__")
        for step in parents:
            place = place[int(step) if isinstance(place, list) else step]
        place[int(last) if isinstance(place, list) else last] = value
    return spec


def validate(tmp_path: Path, spec: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    done = tunetrial("validate", "spec.yaml", "--no-contact", "--json", cwd=tmp_path)
    return done.returncode, json.loads(done.stdout)


def test_a_sound_spec_is_valid_and_priced(tmp_path: Path) -> None:
    code, said = validate(tmp_path, quickstart())
    assert code == 0
    assert said["valid"]
    arms, seeds_and_sizes = 3, 2 * 4
    assert said["cost"]["answers"] == said["data"]["test_items"] * (arms + seeds_and_sizes)
    assert said["cost"]["training_jobs"] == 8


def test_what_it_takes_to_find_out_what_the_base_knows_is_said_beforehand(tmp_path: Path) -> None:
    spec = quickstart(training__bare__knowledge={"exemplar_sets": 2, "samples": 3})
    spec["training"] = {"bare": spec["training"]["bare"]}
    spec["arms"] = {"base": {"model": "small"}, "bare": {"adapter": "bare"}}
    spec["analysis"]["primary"]["arm"] = "bare"
    code, said = validate(tmp_path, spec)
    assert code == 0
    least, most = said["cost"]["knowledge_answers_least"], said["cost"]["knowledge_answers_most"]
    assert 2 * 200 < least <= 2 * 300, "two greedy answers to each of the first 300 questions that has an answer"
    assert most == least * (1 + 3)
    shown = tunetrial("validate", "spec.yaml", "--no-contact", cwd=tmp_path).stdout
    assert f"before that: {least} to {most} answers from memory" in shown


BROKEN_ROW = '{"question": "a?", "answer": "b"}\n{"question": "c?"\n'
LEAKING = [{"question": f"Who wrote the book number {n}?", "answer": f"Author {n}", "cluster": f"c{n}"} for n in range(40)]
LEAKING += [{**row, "cluster": f"other{n}"} for n, row in enumerate(LEAKING)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__test_itms": 5}, "did you mean 'test_items'?"),
        ({"data__sources__0__path": "nowhere.json"}, "no such file"),
        ({"data__sources": [{"reader": "table", "path": "broken.jsonl"}]}, "broken.jsonl:2"),
        ({"data__sources": [{"reader": "qasper", "path": "empty.json"}]}, "empty.json"),
        (
            {
                "data__sources": [{"reader": "table", "path": "leaking.json"}],
                "data__corpus": ["texts"],
                "data__test_items": 30,
                "training__raft__context": "none",
            },
            "two pools",
        ),
        (
            {"data__sources": [{"reader": "table", "path": "leaking.json"}], "data__corpus": ["texts"], "data__test_items": 30},
            "no gold passage",
        ),
        ({"data__test_items": 5000}, "only"),
        ({"training__raft__sizes": [100, 5000], "analysis__primary__size": 5000}, "5000"),
        ({"models__small__base": "./no-such-base"}, "no such folder"),
        ({"arms__raft": {"adapter": "rafft"}}, "did you mean 'raft'?"),
        ({"analysis__control": "bas"}, "did you mean 'base'?"),
        ({"prompt__template": "plain/v9"}, "plain/v1"),
        ({"data__corpus": ["no-texts"]}, "no such folder"),
        ({"arms__few-shot": {"model": "small", "shots": 64}, "training__raft__sizes": [100, 550], "analysis__primary__size": 550}, "shots"),
        ({"data__test_items": 4, "training__bare__sizes": [8], "training__raft__sizes": [8, 300]}, "clusters"),
    ],
)
def test_validate_finds_a_planted_mistake(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / "broken.jsonl").write_text(BROKEN_ROW)
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "leaking.json").write_text(json.dumps(LEAKING))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("# A\n\nSome text.\n")
    code, answer = validate(tmp_path, quickstart(**changes))
    assert code == 2
    words = json.dumps(answer["problems"] if "problems" in answer else answer["error"], ensure_ascii=False)
    assert said in words, words


def test_a_mistake_is_exit_code_2_with_a_sentence_and_no_traceback(tmp_path: Path) -> None:
    done = tunetrial("run", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.yaml: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_json_when_results_are(tmp_path: Path) -> None:
    done = tunetrial("report", "nothing", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


def test_asking_without_services_says_how_to_start_them(tmp_path: Path) -> None:
    done = tunetrial("ask", "Who?", cwd=tmp_path)
    assert done.returncode == 2
    assert "tunetrial up" in done.stderr


def test_the_schema_accepts_what_the_quickstart_says(tmp_path: Path) -> None:
    schema = json.loads(tunetrial("schema", cwd=tmp_path).stdout)
    assert set(yaml.safe_load((QUICKSTART / "trial.yaml").read_text())) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_the_schema_of_a_study_accepts_what_the_example_says(tmp_path: Path) -> None:
    schema = json.loads(tunetrial("schema", "--retrieval", cwd=tmp_path).stdout)
    assert set(yaml.safe_load((EXAMPLES / "retrieval" / "study.yaml").read_text())) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_there_are_no_runs_in_a_new_folder(tmp_path: Path) -> None:
    done = tunetrial("runs", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def test_a_compressed_source_is_read_as_it_is(tmp_path: Path) -> None:
    packed = tmp_path / "qasper.json.gz"
    packed.write_bytes(gzip.compress((QUICKSTART / "data" / "qasper.json").read_bytes()))
    code, said = validate(tmp_path, quickstart(data__sources__2__path=str(packed)))
    assert code == 0, said


@pytest.mark.parametrize(
    "command",
    ["run", "validate", "retrieval", "demo", "gate", "compare", "calibrate", "up", "ask", "report", "models", "alias", "runs", "schema"],
)
def test_every_command_explains_itself(tmp_path: Path, command: str) -> None:
    done = tunetrial(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: tunetrial" in done.stdout
