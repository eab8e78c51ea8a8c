"""Holds labels of people against the judge of a finished run. Knows files and which label belongs to which answer; asks nobody.

It leaves two files in the run's folder. `calibration.csv` has a row for each figure. `calibration.json` holds no NaN; what is missing is
null, and its keys are stable within a `schema`:

| key      | value                                                                                                      |
|----------|------------------------------------------------------------------------------------------------------------|
| schema   | `tunetrial.calibration/1`                                                                                  |
| name, run| the trial, the folder's name                                                                               |
| labels   | `file`, `sha256`, `rows`, and `answers` that they score                                                    |
| settings | `flows.analysis.settings.AnalysisSettings` of the run                                                      |
| verdict  | `outcome`, `sentence`, `gate` as people score; `judge`, the outcome by the judge alone                     |
| primary  | the corrected primary contrast, as in `criteria`; like `verdict` null when it has no labels                |
| criteria | every `flows.analysis.calibration.CriterionCalibration`                                                    |
| notes    | what to read the figures with care for                                                                     |
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flows.analysis.calibration import Calibration, calibrate
from flows.analysis.human_scores import Answered, HumanScore
from flows.analysis.settings import AnalysisSettings
from flows.analysis.verdict import Verdict
from flows.calibration_rows import as_csv
from flows.data.labels import Label, read_labels, refused
from flows.errors import BadRow, UserError
from flows.finished_run import FinishedRun
from flows.records import Answer, Contestant, Item, Judgement
from flows.report.plain import plain

SCHEMA = "tunetrial.calibration/1"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came out, and the same as `calibration.json` has it."""

    calibration: Calibration
    content: Mapping[str, Any]
    files: tuple[Path, Path]


def calibrate_run(run: FinishedRun, labels: Path, good_from: float | None = None) -> Calibrated:
    """Reads the run and the labels, and writes what they amount to into the run's folder. Raises UserError, and DataError for rows."""
    settings = _settings(run)
    scales = _scales(run)
    rows = read_labels(labels)
    if good_from is not None:
        _check_good_from(good_from, {row.criterion: scales[row.criterion] for row in rows if row.criterion in scales})
    answers = run.records("answers", Answer)
    scores = _matched(labels, rows, answers, scales)
    try:
        found = calibrate(
            run.records("items", Item),
            _contestants(run),
            run.records("judgements", Judgement),
            scores,
            settings=settings,
            scales=scales,
            good_from=good_from,
        )
    except ValueError as error:
        raise UserError(f"{run.folder}: {error}") from error
    told = {
        "file": labels.name,
        "sha256": hashlib.sha256(labels.read_bytes()).hexdigest() if labels.is_file() else None,
        "rows": len(rows),
        "answers": len({score.answer for score in scores}),
    }
    content = plain(_content(run, told, settings, found))
    files = (run.folder / "calibration.json", run.folder / "calibration.csv")
    _write(files[0], json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    _write(files[1], as_csv(found))
    return Calibrated(found, content, files)


def _content(run: FinishedRun, labels: Mapping[str, Any], settings: AnalysisSettings, found: Calibration) -> dict[str, Any]:
    primary = found.primary
    passes = primary is not None and primary.verdict in (Verdict.BETTER, Verdict.NON_INFERIOR)
    return {
        "schema": SCHEMA,
        "name": run.report["name"],
        "run": run.name,
        "labels": labels,
        "settings": settings,
        "verdict": None
        if primary is None
        else {
            "outcome": primary.verdict,
            "sentence": primary.sentence,
            "gate": "pass" if passes else "fail",
            "judge": primary.judged.verdict,
        },
        "primary": primary,
        "criteria": found.criteria,
        "notes": found.notes,
    }


def _write(file: Path, text: str) -> None:
    # Written beside and moved: a stop leaves no half file, and an earlier one stays until then.
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _settings(run: FinishedRun) -> AnalysisSettings:
    try:
        return TypeAdapter(AnalysisSettings).validate_python(run.report["settings"]["analysis"])
    except (KeyError, ValidationError) as error:
        raise UserError(f"{run.folder / 'report.json'} holds no settings of the analysis: {error}") from None


def _scales(run: FinishedRun) -> dict[str, tuple[int, int]]:
    details = {rubric["criterion"]: rubric["details"] for rubric in run.report["rubrics"]}
    return {criterion: (int(one["low"]), int(one["high"])) for criterion, one in details.items()}


def _contestants(run: FinishedRun) -> tuple[Contestant, ...]:
    return tuple(
        Contestant(arm["arm"], arm["family"], arm["model"], size=arm["size"], seed=seed, rag=arm["rag"], shots=arm["shots"])
        for arm in run.report["arms"]
        for seed in (arm["seeds"] or (None,))
    )


def _check_good_from(score: float, scales: Mapping[str, tuple[int, int]]) -> None:
    for criterion, (low, high) in scales.items():
        if not low < score <= high:
            raise UserError(
                f"--good-from {score:g}: {criterion} is scored from {low} to {high}; give a score above {low} and at most {high}"
            )


def _matched(path: Path, rows: Sequence[Label], answers: Sequence[Answer], scales: Mapping[str, tuple[int, int]]) -> tuple[HumanScore, ...]:
    """Labels by the answer that they score. DataError with all rows that belong to none, or whose score is not on the scale."""
    known: dict[tuple[str, str], list[int]] = defaultdict(list)
    for answer in answers:
        known[answer.contestant, answer.item].append(answer.sample)
    names = {"item": {answer.item for answer in answers}, "contestant": {answer.contestant for answer in answers}, "criterion": set(scales)}
    bad: list[BadRow] = []
    given: dict[tuple[Answered, str], dict[str, Label]] = defaultdict(dict)
    for row in rows:
        samples = known.get((row.contestant, row.item), [])
        sample = samples[0] if row.sample is None and len(samples) == 1 else row.sample
        if reason := _wrong(row, names, samples, scales):
            bad.append(BadRow(row.file, row.line, reason))
            continue
        assert sample is not None  # noqa: S101  otherwise there was a reason
        people = given[(row.contestant, row.item, sample), row.criterion]
        if row.annotator in people:
            bad.append(BadRow(row.file, row.line, f"sample {sample} was scored before, at line {people[row.annotator].line}: keep one"))
        people[row.annotator] = row
    if bad:
        raise refused(path, len(rows), tuple(bad))
    return tuple(
        HumanScore(*answer, criterion, {who: row.score for who, row in people.items()}, next(iter(people.values())).probability)
        for (answer, criterion), people in given.items()
    )


def _wrong(row: Label, names: Mapping[str, set[str]], samples: Sequence[int], scales: Mapping[str, tuple[int, int]]) -> str:
    for what, known in names.items():
        if (named := getattr(row, what)) not in known:
            some = ", ".join(sorted(known)) if len(known) <= 20 else f"{', '.join(sorted(known)[:3])}, ... ({len(known)})"
            return f"the run has no {what} {named!r}; it has {some}"
    if not samples:
        return f"{row.contestant} gave no answer to {row.item!r} in this run"
    if row.sample is None and len(samples) > 1:
        return f"{row.contestant} gave {len(samples)} answers to {row.item!r}: say which in `sample`"
    if row.sample is not None and row.sample not in samples:
        return f"{row.contestant} gave no answer number {row.sample} to {row.item!r}; samples: {', '.join(map(str, sorted(samples)))}"
    low, high = scales[row.criterion]
    if not low <= row.score <= high:
        return f"'score' is {row.score:g}, {row.criterion} is scored from {low} to {high}"
    return ""
