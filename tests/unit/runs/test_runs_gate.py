"""`tunetrial gate` as a pipeline calls it: exit codes, JUnit XML, Markdown, JSON. Starts no service."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import yaml
from run_folders import write_run

from flows.cli import main
from flows.commands import gate as gate_command
from flows.errors import TrialError
from flows.running import Stopped

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"
COUNT = 40
BASE = [3.0] * COUNT
SCORES = {
    "BETTER": [4.0, 4.0, 3.5, 3.5] * (COUNT // 4),
    "NON_INFERIOR": [3.1, 3.1, 2.9, 2.9] * (COUNT // 4),
    "WORSE": [2.0, 2.0, 2.5, 2.5] * (COUNT // 4),
    "INCONCLUSIVE": [4.0, 4.0, 1.9, 2.0] * (COUNT // 4),
}
EXIT = {"BETTER": 0, "NON_INFERIOR": 0, "WORSE": 3, "INCONCLUSIVE": 4}


class Called:
    """What a call of the command said, and its exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["tunetrial", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def tunetrial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    monkeypatch.chdir(tmp_path)
    return Called(monkeypatch, capsys)


def run_of(folder: Path, verdict: str, second: str = "WORSE", **changes: Any) -> Path:
    """A run whose primary contrast has this verdict, and whose other one, on completeness, the second."""
    scores = {"accuracy": {"base": BASE, "tuned": SCORES[verdict]}, "completeness": {"base": BASE, "tuned": SCORES[second]}}
    written = write_run(folder, scores, **changes)
    contrasts = json.loads((written / "report.json").read_text())["contrasts"]
    assert [one["verdict"] for one in contrasts] == [verdict, second]
    return written


def parsed(file: Path) -> Xml.Element:
    return Xml.parse(file).getroot()  # noqa: S314  written by the command under test


@pytest.mark.parametrize("verdict", SCORES)
def test_the_exit_code_is_the_verdict(tmp_path: Path, tunetrial: Called, verdict: str) -> None:
    run_of(tmp_path / "runs" / "small-1", verdict)
    code, out, _ = tunetrial("gate", "small-1")
    assert code == EXIT[verdict]
    assert f"tuned is {verdict.replace('_', '-')} " in out
    assert f"gate: {'pass' if EXIT[verdict] == 0 else 'fail'}" in out


@pytest.mark.parametrize("verdict", SCORES)
@pytest.mark.parametrize("second", SCORES)
def test_junit_is_red_exactly_where_the_gate_does_not_pass(tmp_path: Path, tunetrial: Called, verdict: str, second: str) -> None:
    run_of(tmp_path / "runs" / "small-1", verdict, second)
    code, _, _ = tunetrial("gate", "small-1", "--junit", "out/gate.xml")
    root = parsed(tmp_path / "out" / "gate.xml")
    [suite] = root.findall("testsuite")
    first, other = suite.findall("testcase")
    red = suite.findall("testcase/failure")
    assert [element.get("type") for element in red] == ([verdict] if code else [])
    assert (other.find("skipped") is None) == (EXIT[second] == 0)
    for element in (root, suite):
        assert int(element.get("tests", "")) == 2
        assert int(element.get("failures", "")) == len(red)
        assert int(element.get("skipped", "")) == len(suite.findall("testcase/skipped"))
        assert element.get("errors") == "0"
    assert first.get("name") == "tuned against base on accuracy (primary)"
    sentence = json.loads((tmp_path / "runs" / "small-1" / "report.json").read_text())["primary"]["sentence"]
    told = red[0].get("message") if red else (first.findtext("system-out") or "").splitlines()[0]
    assert told == sentence


def test_junit_keeps_to_what_ci_servers_read(tmp_path: Path, tunetrial: Called) -> None:
    run_of(tmp_path / "runs" / "small-1", "WORSE", "INCONCLUSIVE")
    tunetrial("gate", "small-1", "--junit", "gate.xml")
    root = parsed(tmp_path / "gate.xml")
    [suite] = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    assert [child.tag for child in suite] == ["properties", "testcase", "testcase"], "in the order of the schema"
    assert suite.get("timestamp") == "2026-02-03T10:11:12", "the schema knows no offset"
    assert float(suite.get("time", "")) == sum(float(case.get("time", "")) for case in suite.findall("testcase")) == 61.5
    for case in suite.findall("testcase"):
        assert set(case.attrib) == {"classname", "name", "time"}
        assert len([child for child in case if child.tag in ("failure", "error", "skipped")]) <= 1
    assert {one.get("name") for one in suite.findall("properties/property")} == {"run", "verdict", "gate", "report"}


def test_the_summary_holds_the_sentence_every_contrast_and_the_report(tmp_path: Path, tunetrial: Called) -> None:
    folder = run_of(tmp_path / "runs" / "small-1", "NON_INFERIOR", "WORSE")
    code, out, _ = tunetrial("gate", "small-1", "--markdown", "-")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "### small: the gate passes"
    assert lines[2].startswith("**tuned is NON-INFERIOR to base on accuracy:")
    rows = [line for line in lines if line.startswith("| tuned")]
    assert len(rows) == 2
    assert "| **non-inferior** (primary) |" in rows[0]
    assert "| worse | -0.75 [" in rows[1]
    assert {row.count("|") for row in rows} == {6}
    assert f"report `{folder / 'report.html'}`" in lines[-1]
    tunetrial("gate", "small-1", "--markdown", "summary.md")
    assert (tmp_path / "summary.md").read_text() == out


def test_json_holds_code_verdict_and_contrasts(tmp_path: Path, tunetrial: Called) -> None:
    run_of(tmp_path / "runs" / "small-1", "WORSE", "BETTER")
    code, out, _ = tunetrial("gate", "small-1", "--json")
    said = json.loads(out)
    assert (code, said["exit_code"], said["verdict"], said["gate"]) == (3, 3, "WORSE", "fail")
    assert [one["verdict"] for one in said["contrasts"]] == ["WORSE", "BETTER"]
    assert said["contrasts"][0]["interval"]["high"] < 0


def test_a_run_that_was_moved_is_gated_where_it_is(tmp_path: Path, tunetrial: Called) -> None:
    run_of(tmp_path / "runs" / "small-1", "BETTER")
    shutil.move(tmp_path / "runs" / "small-1", tmp_path / "elsewhere")
    code, out, _ = tunetrial("gate", "elsewhere", "--json")
    assert code == 0
    assert json.loads(out)["report"] == str(tmp_path / "elsewhere" / "report.html")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "'nothing' is no run; finished runs in runs: small-1"),
        (("none.yaml",), "none.yaml: no such file"),
        (("unfinished",), "holds no readable outcome.json"),
        (("small-1", "--json", "--markdown", "-"), "give --json or --markdown -, not both"),
        (("small-1", "--junit", "runs"), "runs cannot be written"),
        (("small-1", "--markdown", "file/summary.md"), "file/summary.md cannot be written"),
    ],
)
def test_a_mistake_is_exit_code_2_with_a_sentence(tmp_path: Path, tunetrial: Called, arguments: tuple[str, ...], said: str) -> None:
    run_of(tmp_path / "runs" / "small-1", "BETTER")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "file").write_text("")
    code, out, err = tunetrial("gate", *arguments)
    assert code == 2
    assert said in " ".join((out + err).split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "tunetrial.report/9"}, "is of schema 'tunetrial.report/9'"),
        ({"contrasts": []}, "holds no contrasts to gate on"),
        ({"contrasts": [{"primary": True}]}, "holds no contrasts to gate on"),
    ],
)
def test_a_report_that_cannot_be_read_is_no_pass(tmp_path: Path, tunetrial: Called, change: dict[str, Any], said: str) -> None:
    file = run_of(tmp_path / "runs" / "small-1", "BETTER") / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    code, _, err = tunetrial("gate", "small-1")
    assert code == 2
    assert said in " ".join(err.split())


def test_an_outcome_and_a_report_of_two_runs_are_no_pass(tmp_path: Path, tunetrial: Called) -> None:
    good = run_of(tmp_path / "runs" / "small-1", "BETTER")
    bad = run_of(tmp_path / "runs" / "small-2", "WORSE")
    shutil.copy(bad / "report.json", good / "report.json")
    code, _, err = tunetrial("gate", "small-1")
    assert code == 2
    assert "its outcome says BETTER, its report WORSE" in " ".join(err.split())


@pytest.mark.parametrize(("error", "expected"), [(Stopped("stopped", 130), 130), (TrialError("broken \x00<b>|</b>"), 1)])
def test_without_a_verdict_the_files_say_so(
    tmp_path: Path, tunetrial: Called, monkeypatch: pytest.MonkeyPatch, error: TrialError, expected: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(gate_command, "run_trial", fail)
    (tmp_path / "trial.yaml").write_text("name: small\n")
    (tmp_path / "gate.xml").write_text("of an earlier run")
    code, _, err = tunetrial("gate", "trial.yaml", "--junit", "gate.xml", "--markdown", "summary.md")
    assert code == expected
    assert str(error).split()[0] in err
    [case] = parsed(tmp_path / "gate.xml").findall("testsuite/testcase")
    assert (case.get("classname"), [child.tag for child in case]) == ("tunetrial.trial", ["error"])
    summary = (tmp_path / "summary.md").read_text()
    assert "The gate was not reached" in summary
    assert "<b>" not in summary


def test_files_of_an_earlier_run_do_not_outlive_a_crash(tmp_path: Path, tunetrial: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(gate_command, "run_trial", crash)
    (tmp_path / "trial.yaml").write_text("name: small\n")
    (tmp_path / "gate.xml").write_text("of an earlier run")
    with pytest.raises(RuntimeError):
        tunetrial("gate", "trial.yaml", "--junit", "gate.xml")
    assert not (tmp_path / "gate.xml").exists()


def test_a_spec_that_ran_is_gated_without_running_it_again(tmp_path: Path, tunetrial: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import running  # noqa: PLC0415
    from flows.outcome import run_folder  # noqa: PLC0415
    from flows.progress import Silent  # noqa: PLC0415
    from flows.spec_file import load  # noqa: PLC0415
    from flows.trial import open_trial  # noqa: PLC0415

    spec = yaml.safe_load((QUICKSTART / "trial.yaml").read_text())
    for source in spec["data"]["sources"]:
        source["path"] = str(QUICKSTART / source["path"])
    spec["models"]["small"]["base"] = str(QUICKSTART / "base")
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(spec))
    key = open_trial(load(tmp_path / "trial.yaml"), tmp_path / ".tunetrial", Silent()).run_key()
    run_of(run_folder(tmp_path / "runs", spec["name"], key), "WORSE", key=key)
    ran: list[str] = []

    def run_flow(name: str, *_: object, **__: object) -> None:
        ran.append(name)
        raise TrialError("would run")

    monkeypatch.setattr(running, "_run_flow", run_flow)
    code, out, _ = tunetrial("gate", "trial.yaml")
    assert (code, ran) == (3, [])
    assert "nothing was computed" in out
    spec["analysis"]["margin"] = 0.3
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(spec))
    code, _, _ = tunetrial("gate", "trial.yaml")
    assert (code, ran) == (1, [spec["name"]]), "another spec is another trial"
