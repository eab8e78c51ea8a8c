"""A calibration as `calibration.csv`: one row a figure, for spreadsheets. Knows no file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from flows.analysis.bootstrap import Interval
from flows.analysis.calibration import ArmCalibration, Calibration, CriterionCalibration
from flows.analysis.corrected_contrasts import CorrectedContrast
from flows.analysis.prediction_powered import Corrected
from flows.analysis.shares import ArmShare

COLUMNS = ("criterion", "arm", "control", "measure", "value", "standard_error", "low", "high", "level", "power", "labelled", "verdict")


def as_csv(found: Calibration) -> str:
    """All figures, with a header. What is missing is blank."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for criterion in found.criteria:
        for row in _rows(criterion):
            writer.writerow({"criterion": criterion.criterion, **{key: "" if value is None else value for key, value in row.items()}})
    return text.getvalue()


def _rows(found: CriterionCalibration) -> Iterator[dict[str, Any]]:
    agreed, people = found.agreement, found.annotators
    for name, figure in (("spearman", agreed.spearman), ("kendall_tau_b", agreed.kendall), ("weighted_kappa", agreed.weighted_kappa)):
        yield {"measure": name, "value": figure.value, "labelled": agreed.answers, **_ends(figure.interval)}
    yield {"measure": "same_score", "value": agreed.same, "labelled": agreed.answers}
    if people.answers:
        yield {"measure": "annotators_alpha", "value": people.alpha.value, "labelled": people.answers, **_ends(people.alpha.interval)}
    for arm in found.arms:
        yield from _arm(arm)
    for contrast in found.contrasts:
        yield from _contrast(contrast)
    for share in found.shares:
        yield from _share(share)


def _arm(found: ArmCalibration) -> Iterator[dict[str, Any]]:
    yield {"arm": found.arm, "measure": "judge_mean", "value": found.judge}
    yield {"arm": found.arm, "measure": "bias", **_figures(found.bias), "power": ""}
    yield {"arm": found.arm, "measure": "people_mean", **_figures(found.people)}
    yield {"arm": found.arm, "measure": "corrected_mean", **_figures(found.corrected)}


def _contrast(found: CorrectedContrast) -> Iterator[dict[str, Any]]:
    pair = {"arm": found.arm, "control": found.control}
    judged = found.judged
    yield {
        **pair,
        "measure": "judge_difference",
        "value": judged.difference,
        "standard_error": judged.standard_error,
        **_ends(judged.interval),
        "verdict": judged.verdict.value,
    }
    yield {**pair, "measure": "bias_of_difference", **_figures(found.bias), "power": ""}
    yield {**pair, "measure": "people_difference", **_figures(found.people)}
    yield {**pair, "measure": "corrected_difference", **_figures(found.corrected), "verdict": found.verdict.value}


def _share(found: ArmShare) -> Iterator[dict[str, Any]]:
    labelled = {"sensitivity": found.yes, "specificity": found.no}
    for name in ("apparent", "sensitivity", "specificity"):
        measure = "apparent_share" if name == "apparent" else name
        yield {"arm": found.arm, "measure": measure, "value": getattr(found, name), "labelled": labelled.get(name)}
    for measure, share in (("corrected_share", found.corrected), ("corrected_share_difference", found.difference)):
        if share is not None:
            ends = _ends(share.interval)
            yield {"arm": found.arm, "measure": measure, "value": share.value, "standard_error": share.standard_error, **ends}


def _figures(found: Corrected) -> dict[str, Any]:
    named = {"value": found.value, "standard_error": found.standard_error, "power": found.power, "labelled": found.labelled}
    return {**named, **_ends(found.interval)}


def _ends(interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {"low": interval.low, "high": interval.high, "level": interval.level}
