"""`tunetrial plan`: from a run's folder and from stated variances, as a person or a program calls it. Starts no service."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.analysis.analyse import analyse
from flows.analysis.settings import AnalysisSettings, Primary
from flows.cli import app
from flows.errors import UserError
from flows.finished_run import SCHEMA, find_run
from flows.outcome import Outcome, save
from flows.plan.pilot import of_run, parse_variances, stated
from flows.plan.plan import Changes, changed, make_plan
from flows.records import Contestant, Item, Judgement
from flows.report.plain import plain
from flows.store import to_table
from tests.unit.analysis.planted import SDS, arm_scores, two_arms


def tunetrial(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from flows.cli import main; sys.argv[0] = 'tunetrial'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def judged(contestants: list[Contestant], values: np.ndarray, items: list[Item]) -> list[Judgement]:
    return [
        Judgement(contestant.id, item.id, sample, "accuracy", run, None if np.isnan(score) else float(score), "", 0, 0, None)
        for contestant, by_item in zip(contestants, values, strict=True)
        for item, samples in zip(items, by_item, strict=True)
        for sample, scores in enumerate(samples)
        for run, score in enumerate(scores)
    ]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: `tuned` with three seeds against `base`, two samples, two judge runs, 50 items in 20 clusters, some gaps."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), [1, 2, 3, 4] * 5)
    tuned, base = two_arms(rng, clusters, (3, 2, 2), (1, 2, 2), SDS, difference=0.1)
    other = arm_scores(rng, np.full(50, 2.0), (1, 2, 2), SDS, trained=False)
    tuned[0, 7] = base[0, 8, 0] = tuned[1, 4, 1, 1] = np.nan
    items = [Item(f"q{place}", "?", ("!",), f"paper {cluster}") for place, cluster in enumerate(clusters)]
    arms = {
        "base": [Contestant("base", "base", "small")],
        "tuned": [Contestant("tuned", "tuned", "small", "lora", 300, seed) for seed in (1, 2, 3)],
        "other": [Contestant("other", "other", "large")],
    }
    contestants = [one for several in arms.values() for one in several]
    judgements = [one for arm, values in (("base", base), ("tuned", tuned), ("other", other)) for one in judged(arms[arm], values, items)]
    settings = AnalysisSettings("base", Primary("tuned", "accuracy"), 0.15, bootstrap=1000)
    analysis = analyse(items, contestants, [], judgements, hits=[], gold={}, settings=settings)
    folder = tmp_path_factory.mktemp("runs") / "trial-123456"
    folder.mkdir()
    pq.write_table(to_table(Item, items), folder / "items.parquet")
    pq.write_table(to_table(Judgement, judgements), folder / "judgements.parquet")
    report = {"schema": SCHEMA} | {name: plain(getattr(analysis, name)) for name in ("arms", "criteria", "primary")}
    spec = {"decoding": {"temperature": 1.0}, "judge": {"engine": "openai"}}
    (folder / "report.json").write_text(json.dumps(report | {"settings": {"analysis": asdict(settings), "spec": spec}}))
    sentence = analysis.primary.sentence
    save(Outcome("123456", str(folder), "2026-01-01T00:00:00", sentence, "INCONCLUSIVE", (), 1, (), "fail", 1.0, 0, 0, None, 50, 3))
    return folder


def test_a_run_gives_the_difference_and_interval_that_it_reported(run_folder: Path) -> None:
    run = find_run(str(run_folder), Path("runs"))
    pilot = of_run(run)
    primary = run.report["primary"]
    assert pilot.measured is not None
    assert pilot.measured.interval is not None
    assert pilot.measured.difference == pytest.approx(primary["difference"])
    assert pilot.measured.standard_error == pytest.approx(primary["standard_error"])
    assert (pilot.measured.interval.low, pilot.measured.interval.high) == pytest.approx(
        (primary["interval"]["low"], primary["interval"]["high"])
    )
    assert pilot.design.items == primary["items"]
    assert (pilot.design.clusters, pilot.design.samples, pilot.design.runs) == (20, 2, 2)
    assert (pilot.design.arm_seeds, pilot.design.control_seeds, pilot.margin, pilot.alpha) == (3, 1, 0.15, 0.05)
    assert pilot.components.arm.run == pytest.approx(SDS["run"] ** 2, rel=0.3)
    assert pilot.components.control.sample is not None
    assert pilot.components.control.seed is None


def test_an_arm_that_was_not_trained_has_no_layer_of_seeds(run_folder: Path) -> None:
    run = find_run(str(run_folder), Path("runs"))
    pilot = of_run(run, "other")
    assert "seed" not in pilot.layers
    assert "seed_item" not in pilot.layers
    with pytest.raises(UserError, match="neither other nor base was trained"):
        make_plan(pilot, Changes(seeds=3), difference=0.2, margin=None, power=0.8, alpha=None)


def test_greedy_answers_and_the_reference_judge_have_nothing_to_repeat(run_folder: Path) -> None:
    run = find_run(str(run_folder), Path("runs"))
    spec = {"decoding": {"temperature": 0.0}, "judge": {"engine": "reference"}}
    pilot = of_run(replace(run, report={**run.report, "settings": {**run.report["settings"], "spec": spec}}))
    assert pilot.layers == ("seed", "cluster", "item", "seed_item")


def test_the_command_prints_the_table_and_the_numbers_that_decide(run_folder: Path) -> None:
    done = tunetrial("plan", "trial-123456", "--runs", str(run_folder.parent), cwd=run_folder)
    assert done.returncode == 0, done.stderr
    assert "pilot trial-123456: tuned against base on accuracy" in done.stdout
    for name in ("training seed", "cluster", "item", "seed x item", "generation sample", "judge run", "randomisation p", "margin 0.15"):
        assert name in done.stdout


def test_the_command_as_json_can_be_planned_with(run_folder: Path) -> None:
    changes = ("--judge-runs", "4", "--items", "400", "--clusters", "100", "--difference", "0.5", "--power", "0.9")
    done = tunetrial("plan", str(run_folder), *changes, "--json", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["measured"]["arm"] == "tuned"
    assert (said["design"]["runs"], said["design"]["items"], said["design"]["clusters"]) == (4, 400, 100)
    assert sum(layer["share"] for layer in said["layers"]) == pytest.approx(1.0)
    assert [reach["goal"]["claim"] for reach in said["reaches"]] == ["better", "non-inferior"]
    for reach in said["reaches"]:
        assert reach["goal"]["power"] == 0.9
        for route in reach["routes"]:
            assert route["reached"] >= 0.9 or route["number"] is None


def test_stated_standard_deviations_are_stated_variances() -> None:
    by_sd = CliRunner().invoke(app, ["plan", "--sd", "item=0.8,run=0.5", "--json"], catch_exceptions=False)
    by_variance = CliRunner().invoke(app, ["plan", "--variances", "item=0.64, run=0.25", "--json"], catch_exceptions=False)
    assert by_sd.exit_code == by_variance.exit_code == 0
    one, other = json.loads(by_sd.stdout), json.loads(by_variance.stdout)
    assert one["standard_error"] == pytest.approx(((0.64 + 2 * 0.25) / 100) ** 0.5)
    assert one["standard_error"] == pytest.approx(other["standard_error"])
    assert one["reaches"][0]["routes"][0]["number"] == other["reaches"][0]["routes"][0]["number"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of a finished run, --variances and --sd"),
        (("somewhere", "--sd", "item=1"), "give one of a finished run, --variances and --sd"),
        (("somewhere",), "is no run"),
        (("--sd", "items=1"), "'items' is no layer of variance; layers are seed, cluster, item"),
        (("--sd", "item=much"), "item='much' is no number"),
        (("--sd", "item=-1"), "give a number of at least 0"),
        (("--sd", "item=inf"), "give a number of at least 0"),
        (("--sd", "item=1,item=2"), "item is given twice"),
        (("--sd", "item=0"), "all variances are 0"),
        (("--sd", "item=1", "--power", "80"), "--power 80: give a number between 0 and 1"),
        (("--sd", "item=1", "--arm", "raft"), "--arm and --criterion belong to a run"),
        (("--sd", "item=1", "--seeds", "3"), "add seed=..."),
        (("--sd", "item=1,cluster=1"), "give --items and --clusters"),
        (("--sd", "item=1,cluster=1", "--items", "10", "--clusters", "20"), "at least one item a cluster"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_change(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)


def test_a_mistake_ends_with_exit_code_two(tmp_path: Path) -> None:
    done = tunetrial("plan", "--sd", "items=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no layer of variance" in done.stderr


def test_an_unknown_arm_or_criterion_lists_what_there_is(run_folder: Path) -> None:
    run = find_run(str(run_folder), Path("runs"))
    with pytest.raises(UserError, match="its arms are tuned, other"):
        of_run(run, "raft")
    with pytest.raises(UserError, match="its arms are tuned, other"):
        of_run(run, "base")
    with pytest.raises(UserError, match="its criteria are accuracy"):
        of_run(run, criterion="taste")


def test_more_items_come_in_more_clusters_unless_those_are_named() -> None:
    pilot = stated(parse_variances("item=1,cluster=0.2,seed=0.1", squared=False))
    assert (pilot.design.items, pilot.design.clusters, pilot.design.arm_seeds) == (100, 100, 3)
    base = changed(pilot.design, Changes(items=60, clusters=20))
    assert (changed(base, Changes(items=120)).items, changed(base, Changes(items=120)).clusters) == (120, 40)
    assert (changed(base, Changes(clusters=30)).items, changed(base, Changes(clusters=30)).clusters) == (90, 30)
    assert changed(base, Changes(seeds=5)).arm_seeds == 5


def test_a_pilot_without_variance_is_no_plan() -> None:
    pilot = stated({"seed": 0.0, "item": 0.0})
    plan = make_plan(pilot, Changes(), difference=0.2, margin=None, power=0.8, alpha=None)
    assert plan.reaches == ()
    assert "no variance to plan with" in plan.advice
