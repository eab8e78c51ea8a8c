"""The files of a report: every number in JSON and Parquet, the verdict in Markdown."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.report.content import TrialReport
from flows.report.export import SCHEMA, export, machine_readable
from flows.report.markdown import markdown
from flows.report.plain import plain


@pytest.fixture(scope="module")
def folder(report: TrialReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = export(report, tmp_path_factory.mktemp("run") / "report")
    assert page.name == "report.html"
    return page.parent


def test_all_files_are_written(folder: Path) -> None:
    tables = ("items", "passages", "answers", "judgements", "hits", "contrasts", "differences")
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.json", "verdict.md", *(f"{name}.parquet" for name in tables)}


def test_the_json_holds_verdict_numbers_settings_and_hashes(folder: Path, report: TrialReport) -> None:
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["schema"] == SCHEMA
    assert content["verdict"]["outcome"] == "BETTER"
    assert content["verdict"]["gate"] == "pass"
    assert content["verdict"]["sentence"] == report.analysis.primary.sentence
    assert content["primary"] == content["contrasts"][0]
    assert content["primary"]["interval"]["low"] == report.analysis.primary.interval.low
    assert [arm["arm"] for arm in content["arms"]] == [arm.arm for arm in report.analysis.arms]
    assert content["settings"]["analysis"]["margin"] == 0.1
    assert content["inputs"] == report.inputs
    assert len(content["adapters"]) == len(content["proofs"]) == 6
    assert content["rubrics"][0]["details"]["engine"] == "ENGINE_REFERENCE"
    assert content["totals"]["cost_usd"] is None


def test_what_is_not_a_number_is_null_in_json(report: TrialReport) -> None:
    changed = replace(report, adapters=[{**report.adapters[0], "final_loss": float("nan")}])
    assert machine_readable(changed)["adapters"][0]["final_loss"] is None


def test_a_value_without_a_form_in_json_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no form in JSON"):
        plain({"key": object()})


def test_the_tables_hold_every_record(folder: Path, report: TrialReport) -> None:
    rows = {
        name: pq.read_table(folder / f"{name}.parquet") for name in ("items", "answers", "judgements", "hits", "contrasts", "differences")
    }
    assert rows["items"].num_rows == len(report.items)
    assert rows["answers"].num_rows == len(report.answers)
    assert rows["judgements"].num_rows == len(report.judgements)
    assert rows["hits"].num_rows == len(report.hits)
    assert rows["differences"].num_rows == len(report.items)
    first = rows["contrasts"].to_pylist()[0]
    primary = report.analysis.primary
    assert (first["arm"], first["verdict"], first["low"], first["high"]) == (
        primary.arm,
        "BETTER",
        primary.interval.low,
        primary.interval.high,
    )
    assert first["needed_items"] is None


def test_an_inconclusive_contrast_has_its_need_in_the_table(folder: Path, report: TrialReport) -> None:
    rows = pq.read_table(folder / "contrasts.parquet").to_pylist()
    needs = [contrast.need.items if contrast.need else None for contrast in report.analysis.contrasts]
    assert [row["needed_items"] for row in rows] == needs
    assert any(needs)


def test_the_markdown_opens_with_the_verdict_and_lists_arms_and_contrasts(report: TrialReport) -> None:
    text = markdown(report)
    assert text.splitlines()[2] == f"**{report.analysis.primary.sentence}**"
    assert "Gate: **pass**" in text
    assert sum(line.startswith("| raft-1000 | ") for line in text.splitlines()) == 3
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| base |")}
    assert widths == {6}


def test_a_name_cannot_break_the_markdown(report: TrialReport) -> None:
    text = markdown(replace(report, name="a | b\n# c <script>"))
    assert text.splitlines()[0] == "# a \\| b # c &lt;script&gt;"
