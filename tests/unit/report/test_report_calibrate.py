"""`tunetrial calibrate` on the folder of a finished run whose judge has a planted bias: files, words, exit codes, refused rows."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from report_trials import trial

from flows.analysis.analyse import analyse
from flows.calibrate import SCHEMA, calibrate_run
from flows.calibration_rows import COLUMNS
from flows.errors import DataError, UserError
from flows.finished_run import FinishedRun, find_run
from flows.outcome import Outcome, save
from flows.records import Judgement
from flows.report.export import export

TRUTH, BIAS = -0.4, 0.9
"""raft-1000 against base, to people; what the judge gives raft-1000 too much."""


def tunetrial(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from flows.cli import main; sys.argv[0] = 'tunetrial'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of 160 questions, and labels of people for 30 of its 80 documents."""
    home = tmp_path_factory.mktemp("home")
    made = trial(count=160)
    rng = np.random.default_rng(2)
    level = {item.id: 3.2 + rng.normal(0, 0.5) for item in made.items}
    people: dict[tuple[str, str], float] = {}
    judgements = []
    for one in made.judgements:
        answer = (one.contestant, one.item)
        if answer not in people:
            true = level[one.item] + (TRUTH if one.contestant.startswith("raft-1000") else 0.0) + rng.normal(0, 0.4)
            people[answer] = float(np.clip(np.round(2 * true) / 2, 1, 5))
        liked = BIAS if one.contestant.startswith("raft-1000") else 0.0
        judgements.append(replace(one, score=float(np.clip(people[answer] + liked + rng.normal(0, 0.4), 1, 5)), error=None))
    analysis = analyse(
        made.items, made.contestants, made.answers, judgements, hits=made.hits, gold=made.gold, settings=made.analysis.settings
    )
    folder = home / "runs" / "survey-3f2a91"
    export(replace(made, judgements=judgements, analysis=analysis), folder)
    save(Outcome.of(analysis, folder, "3f2a91", 1.0, (), datetime(2026, 2, 3, tzinfo=UTC), {}, {}))
    drawn = set(rng.choice(sorted({item.cluster for item in made.items}), 30, replace=False))
    labelled = {item.id for item in made.items if item.cluster in drawn}
    with (home / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("item", "contestant", "criterion", "score", "annotator"))
        for (contestant, item), score in people.items():
            if item in labelled and contestant in ("base", "raft-1000-s1", "raft-1000-s2"):
                rows.writerow((item, contestant, "accuracy", score, "ann"))
    return home


@pytest.fixture
def run(home: Path) -> FinishedRun:
    return find_run("survey-3f2a91", home / "runs")


def test_the_corrected_verdict_turns_the_judges_round(home: Path, run: FinishedRun) -> None:
    assert run.outcome.verdict == "BETTER"
    done = tunetrial("calibrate", "survey-3f2a91", "--labels", "labels.csv", "--good-from", "3.5", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == SCHEMA
    assert said["verdict"]["outcome"] == "WORSE"
    assert said["verdict"]["judge"] == "BETTER"
    assert said["verdict"]["gate"] == "fail"
    interval = said["primary"]["corrected"]["interval"]
    assert interval["low"] <= TRUTH <= interval["high"]
    assert said["labels"]["rows"] == said["labels"]["answers"] == 180
    files = [Path(file) for file in said.pop("files")]
    assert json.loads(files[0].read_text(encoding="utf-8"), parse_constant=pytest.fail) == said
    with files[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    (corrected,) = [row for row in rows if row["measure"] == "corrected_difference"]
    assert (corrected["arm"], corrected["control"], corrected["verdict"]) == ("raft-1000", "base", "WORSE")
    assert float(corrected["low"]) == interval["low"]
    assert {"spearman", "weighted_kappa", "bias", "corrected_share"} <= {row["measure"] for row in rows}


def test_people_read_the_verdict_first_then_the_tables(home: Path) -> None:
    done = tunetrial("calibrate", str(home / "runs" / "survey-3f2a91"), "--labels", "labels.csv", cwd=home)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("raft-1000 is WORSE than base on accuracy: -0.")
    assert lines[2].startswith("by the judge alone (another verdict): raft-1000 BETTER ")
    assert any(line.startswith("judge and people: Spearman 0.") for line in lines)
    assert any(line.split()[:3] == ["raft-1000", "-", "base"] and line.split()[-1] == "WORSE" for line in lines)
    assert "note: the figures hold if the labelled questions are a random sample of the trial's" in lines
    assert not any("Rogan" in line for line in lines)


def test_running_it_again_gives_the_same_files(home: Path, run: FinishedRun) -> None:
    first = [file.read_bytes() for file in calibrate_run(run, home / "labels.csv").files]
    assert [file.read_bytes() for file in calibrate_run(run, home / "labels.csv").files] == first
    assert not list(run.folder.glob("*.partial"))


def test_labels_of_another_criterion_leave_the_primary_contrast_alone(tmp_path: Path, run: FinishedRun) -> None:
    (tmp_path / "labels.csv").write_text("item,contestant,criterion,score\nq000,base,completeness,4\nq001,base,completeness,2\n")
    found = calibrate_run(run, tmp_path / "labels.csv")
    assert found.content["verdict"] is None
    assert found.content["primary"] is None
    assert [criterion["criterion"] for criterion in found.content["criteria"]] == ["completeness"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("q999,base,accuracy,4,", "the run has no item 'q999'; it has q000, q001, q002, ... (160)"),
        ("q000,raft,accuracy,4,", "the run has no contestant 'raft'; it has bare-1000-s1"),
        ("q000,base,tone,4,", "the run has no criterion 'tone'; it has accuracy, completeness"),
        ("q000,base,accuracy,6,", "'score' is 6, accuracy is scored from 1 to 5"),
        ("q000,base,accuracy,4,3", "base gave no answer number 3 to 'q000'; samples: 0"),
        ("q001,base,accuracy,4,0", "sample 0 was scored before, at line 2: keep one"),
    ],
)
def test_a_label_that_fits_no_answer_is_refused_with_its_line(tmp_path: Path, run: FinishedRun, row: str, reason: str) -> None:
    (tmp_path / "labels.csv").write_text(f"item,contestant,criterion,score,sample\nq001,base,accuracy,4,\n{row}\n")
    with pytest.raises(DataError) as refused:
        calibrate_run(run, tmp_path / "labels.csv")
    (bad,) = refused.value.bad_rows
    assert bad.line == 3
    assert bad.reason.startswith(reason)


def test_one_of_several_answers_must_be_named(tmp_path: Path) -> None:
    made = trial(count=20)
    answers = [*made.answers, *(replace(answer, sample=1) for answer in made.answers)]
    judgements: list[Judgement] = [*made.judgements, *(replace(one, sample=1) for one in made.judgements)]
    export(replace(made, answers=answers, judgements=judgements), tmp_path / "run")
    save(Outcome.of(made.analysis, tmp_path / "run", "3f2a91", 1.0, (), datetime(2026, 2, 3, tzinfo=UTC), {}, {}))
    run = find_run("run", tmp_path)
    (tmp_path / "labels.csv").write_text("item,contestant,criterion,score\nq000,base,accuracy,4\n")
    with pytest.raises(DataError, match="base gave 2 answers to 'q000': say which in `sample`"):
        calibrate_run(run, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("item,contestant,criterion,score,sample\nq000,base,accuracy,4,1\nq000,base,accuracy,2,0\n")
    assert calibrate_run(run, tmp_path / "labels.csv").content["criteria"][0]["arms"][0]["people"]["value"] == 3.0


def test_mistakes_are_exit_code_2_with_a_sentence(home: Path) -> None:
    for arguments, words in (
        (("calibrate", "nothing", "--labels", "labels.csv"), "finished runs in"),
        (("calibrate", "survey-3f2a91", "--labels", "none.csv"), "There is no file none.csv"),
        (("calibrate", "survey-3f2a91", "--labels", "labels.csv", "--good-from", "9"), "accuracy is scored from 1 to 5"),
    ):
        done = tunetrial(*arguments, cwd=home)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_report_without_settings_is_refused(home: Path, run: FinishedRun) -> None:
    with pytest.raises(UserError, match="holds no settings of the analysis"):
        calibrate_run(replace(run, report={**run.report, "settings": {}}), home / "labels.csv")
