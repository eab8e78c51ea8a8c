"""Writes a report: the page, the same as JSON, its records as Parquet, the verdict as Markdown. Knows what is in them, not how it looks.

`report.json` holds no NaN; what is missing is null. Its keys are stable within a `schema`:

| key              | value                                                                                                    |
|------------------|----------------------------------------------------------------------------------------------------------|
| schema           | `tunetrial.report/1`                                                                                     |
| name, run_id, created | the trial, its run, when (ISO 8601)                                                                 |
| verdict          | `outcome`, `sentence`, `meaning`, `gate` (pass or fail), `judge`                                         |
| primary          | the primary contrast, as in `contrasts`                                                                  |
| contrasts        | every `flows.analysis.contrasts.Contrast`, the primary first                                             |
| arms             | every `flows.analysis.summary.ArmSummary`: scores, metrics, abstention, usage                            |
| curves           | every `flows.analysis.summary.Curve`                                                                     |
| retrieval        | `flows.analysis.retrieval.RetrievalQuality`, or null                                                     |
| reranker         | the cross-encoder that reordered what was retrieved, or ""                                               |
| totals           | `flows.analysis.analyse.Totals`                                                                          |
| items, clusters, criteria | how many questions and clusters; names of criteria                                              |
| caveats          | `title` and `text` of each                                                                               |
| settings         | `analysis` (`flows.analysis.settings.AnalysisSettings`) and `spec`                                       |
| inputs, versions | hashes of all that went in; library -> version                                                           |
| counts, leaks    | what was read, skipped and found in two pools                                                            |
| adapters, proofs | each trained adapter, and the evidence that it is applied, in nats                                       |
| knowledge        | what bases know of training questions, by family; question by question in `knowledge.jsonl`              |
| preferences      | pairs of answers, by family: where they came from, and how many were left out for which reason           |
| searches         | searches for settings, by family: everything that was tried, and which was taken                         |
| rubrics, template| what the judge was told, and the prompt template                                                         |
| stages           | seconds of each stage                                                                                    |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.analysis.bootstrap import Interval
from flows.analysis.contrasts import Contrast, ItemDifference
from flows.records import Answer, Hit, Item, Judgement, Passage
from flows.report.content import TrialReport, gate_passes
from flows.report.markdown import markdown
from flows.report.page import render
from flows.report.plain import plain
from flows.report.wording import caveats, judge_label, meaning
from flows.store import to_table

SCHEMA = "tunetrial.report/1"
_AS_THEY_ARE = (
    *("inputs", "versions", "counts", "leaks", "knowledge", "preferences", "searches"),
    *("adapters", "proofs", "rubrics"),
)


@dataclass(frozen=True, slots=True)
class ContrastRow:
    """A contrast as a row of `contrasts.parquet`: intervals and need spread over columns."""

    arm: str
    control: str
    criterion: str
    primary: bool
    verdict: str
    below_control: bool
    sentence: str
    notes: tuple[str, ...]
    difference: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    level: float | None
    simultaneous_low: float | None
    simultaneous_high: float | None
    simultaneous_level: float | None
    p_value: float | None
    p_value_adjusted: float | None
    p_non_inferior: float | None
    p_non_inferior_adjusted: float | None
    items: int
    items_dropped: int
    clusters: int
    arm_seeds: int
    control_seeds: int
    items_above: int
    items_equal: int
    items_below: int
    needed_items: int | None
    needed_clusters: int | None
    detectable: float | None


def export(report: TrialReport, folder: Path) -> Path:
    """Writes all files into `folder`, made if it is not there, and returns the page's path. Raises OSError when it cannot write."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(render(report), encoding="utf-8")
    content = json.dumps(machine_readable(report), ensure_ascii=False, indent=1, allow_nan=False)
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    (folder / "verdict.md").write_text(markdown(report), encoding="utf-8")
    tables: dict[str, tuple[type, Any]] = {
        "items": (Item, report.items),
        # Answers name what they were shown; with these a later trial makes their prompts again.
        "passages": (Passage, report.passages.values()),
        "answers": (Answer, report.answers),
        "judgements": (Judgement, report.judgements),
        "hits": (Hit, report.hits),
        "contrasts": (ContrastRow, [_row(contrast) for contrast in report.analysis.contrasts]),
        "differences": (ItemDifference, report.analysis.item_differences),
    }
    for name, (record, records) in tables.items():
        pq.write_table(to_table(record, records), folder / f"{name}.parquet")
    if report.knowledge_tags:
        lines = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in report.knowledge_tags)
        (folder / "knowledge.jsonl").write_text("".join(lines), encoding="utf-8")
    return page


def machine_readable(report: TrialReport) -> dict[str, Any]:
    """The content of `report.json`; its keys stand at the head of this module."""
    analysis, primary = report.analysis, report.analysis.primary
    content = {
        "schema": SCHEMA,
        "name": report.name,
        "run_id": report.run_id,
        "created": report.created,
        "verdict": {
            "outcome": primary.verdict,
            "sentence": primary.sentence,
            "meaning": meaning(primary, analysis.settings),
            "gate": "pass" if gate_passes(primary) else "fail",
            "judge": judge_label(report),
        },
        **{name: getattr(analysis, name) for name in ("primary", "contrasts", "arms", "curves", "retrieval", "totals")},
        **{name: getattr(analysis, name) for name in ("items", "clusters", "criteria")},
        "reranker": report.reranker,
        "caveats": caveats(report),
        "settings": {"analysis": analysis.settings, "spec": report.spec},
        **{name: getattr(report, name) for name in _AS_THEY_ARE},
        "template": report.template,
        "stages": report.stages,
    }
    return {name: plain(value) for name, value in content.items()}


def _row(contrast: Contrast) -> ContrastRow:
    names = ContrastRow.__dataclass_fields__.keys()
    same = {name: getattr(contrast, name) for name in names if hasattr(contrast, name)}
    low, high, level = _ends(contrast.interval)
    wide_low, wide_high, wide_level = _ends(contrast.simultaneous)
    need = contrast.need
    return ContrastRow(
        **same | {"verdict": contrast.verdict.value},
        low=low,
        high=high,
        level=level,
        simultaneous_low=wide_low,
        simultaneous_high=wide_high,
        simultaneous_level=wide_level,
        needed_items=need.items if need else None,
        needed_clusters=need.clusters if need else None,
    )


def _ends(interval: Interval | None) -> tuple[float, float, float] | tuple[None, None, None]:
    return (None, None, None) if interval is None else (interval.low, interval.high, interval.level)
