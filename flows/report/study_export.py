"""Writes the report of a retrieval study: the page, tables as CSV, and the same as JSON. Knows what is in them, not how it looks.

`retrieval.json` is written last, so a folder that has it is finished. It holds no NaN; what is missing is null. Its keys are stable within
a `schema`:

| key | value |
|---|---|
| schema | `tunetrial.retrieval/1` |
| name, created, seconds | the study, when (ISO 8601), how long this run took |
| sentence | the result in words |
| measure | `name` (ndcg) and `k` of the main measure |
| level, draws, seed | coverage of the intervals; draws of the bootstrap and their seed |
| asked, measured, clusters, without_gold | questions asked, those with something to find and their clusters, those without |
| conditions | `name`, `mode`, `k`, `rerank`, `chunk`, `encoder`, `index`, `passages`, `queries`, `median_ms`, `timed`, `metrics` |
| baseline, best, not_told_apart | the first condition, that with the highest main measure, those whose difference from it may be chance |
| differences, pairs | every `flows.analysis.retrieval_study.Difference`: from the first condition, and between every two |
| left_out, notes, reranker | conditions without a reranker to do them; what to read with care; the cross-encoder, or "" |
| counts, spec, inputs, versions | what was read; the spec; hashes of all that went in; library -> version |
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.report.plain import plain
from flows.report.study_content import StudyReport
from flows.report.study_page import render_study
from flows.report.study_wording import rivals, sentence

SCHEMA = "tunetrial.retrieval/1"
PAGE, CONTENT = "retrieval.html", "retrieval.json"


def export(report: StudyReport, folder: Path) -> None:
    """Writes all files into `folder`, made if it is not there. Raises OSError when it cannot write."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(render_study(report), encoding="utf-8")
    for name, rows in (("conditions", _conditions(report)), ("differences", _differences(report)), ("questions", _questions(report))):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    partial = folder / f"{CONTENT}.partial"
    partial.write_text(json.dumps(machine_readable(report), ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / CONTENT)


def read(folder: Path) -> dict[str, Any] | None:
    """The content of `retrieval.json` of a finished study; None when it is not finished, or was written by another version."""
    try:
        content = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA and (folder / PAGE).is_file() else None


def machine_readable(report: StudyReport) -> dict[str, Any]:
    """The content of `retrieval.json`; its keys stand at the head of this module."""
    analysis = report.analysis
    content = {
        "schema": SCHEMA,
        "name": report.name,
        "created": report.created,
        "seconds": report.seconds,
        "sentence": sentence(analysis),
        "measure": {"name": "ndcg", "k": analysis.depth},
        "level": 1 - analysis.alpha,
        "draws": analysis.draws,
        "seed": analysis.seed,
        "asked": report.counts["asked"],
        "measured": len(analysis.items),
        "clusters": analysis.clusters,
        "without_gold": analysis.without_gold,
        "conditions": [
            {
                **{name: row.retrieval[name] for name in ("mode", "k", "rerank", "chunk", "encoder")},
                **{name: value for name, value in asdict(row).items() if name != "retrieval"},
                "queries": condition.queries,
                "metrics": condition.metrics,
            }
            for row, condition in zip(report.conditions, analysis.conditions, strict=True)
        ],
        "baseline": analysis.conditions[0].name,
        "best": analysis.best.name,
        "not_told_apart": rivals(analysis),
        **{name: getattr(analysis, name) for name in ("differences", "pairs")},
        **{name: getattr(report, name) for name in ("left_out", "notes", "reranker", "counts", "spec", "inputs", "versions")},
    }
    return {name: plain(value) for name, value in content.items()}


Cells = Sequence[object]


def _conditions(report: StudyReport) -> Iterator[Cells]:
    metrics = [f"{metric.name}@{metric.k}" for metric in report.analysis.conditions[0].metrics]
    settings = ("mode", "rerank", "k", "encoder")
    ends = [f"{name}{end}" for name in metrics for end in ("", "_low", "_high")]
    yield ("condition", *settings, "chunk", "passages", "queries", "median_ms", *ends)
    for row, condition in zip(report.conditions, report.analysis.conditions, strict=True):
        found = [value for metric in condition.metrics for value in (metric.mean, *_ends(metric.interval))]
        chosen = (row.retrieval[name] for name in settings)
        yield _cells((row.name, *chosen, _chunk(row.retrieval["chunk"]), row.passages, condition.queries, row.median_ms, *found))


def _chunk(chunk: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in chunk.items() if value not in (None, False))


def _differences(report: StudyReport) -> Iterator[Cells]:
    yield ("condition", "baseline", f"ndcg@{report.analysis.depth}", "low", "high", "queries", "above", "equal", "below")
    for one in report.analysis.pairs:
        yield _cells((one.condition, one.baseline, one.mean, *_ends(one.interval), one.queries, one.above, one.equal, one.below))


def _questions(report: StudyReport) -> Iterator[Cells]:
    """The main measure of every question under every condition."""
    analysis = report.analysis
    yield ("id", "question", *(condition.name for condition in analysis.conditions))
    lines = [
        condition.values[next(place for place, one in enumerate(condition.metrics) if (one.name, one.k) == ("ndcg", analysis.depth))]
        for condition in analysis.conditions
    ]
    for place, item in enumerate(analysis.items):
        yield _cells((item, report.questions[item], *(line[place] for line in lines)))


def _ends(interval: Any) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _cells(values: Iterable[object]) -> list[object]:
    """Missing values as empty cells."""
    plain_values = (plain(value) for value in values)
    return ["" if value is None else value for value in plain_values]
