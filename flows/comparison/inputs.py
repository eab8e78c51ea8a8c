"""What differs in the inputs of two runs, by the reports of both. Knows no scores.

A key that one report lacks and that is null in the other does not differ: an older version wrote fewer keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

_OWN_PARTS = ("files", "corpus", "bases", "run")
"""Keys under `inputs` that are looked at one by one, or name the run."""


@dataclass(frozen=True, slots=True)
class InputDifference:
    """One thing that differs. `part` is spec, data, bases, inputs, template, rubrics, reranker, adapters or versions; a value is None where
    the run has no such thing."""

    part: str
    key: str
    first: Any
    second: Any


def input_differences(first: Report, second: Report) -> tuple[InputDifference, ...]:
    """All that differs, the spec first."""
    return tuple(
        InputDifference(part, key, one, other)
        for part, ones, others in _parts(first, second)
        for key, one, other in _different(ones, others)
    )


def _parts(first: Report, second: Report) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    yield "spec", first["settings"]["spec"], second["settings"]["spec"]
    yield "data", *_by_content(_files(first), _files(second))
    yield "bases", first["inputs"]["bases"], second["inputs"]["bases"]
    yield "inputs", _others(first), _others(second)
    yield "template", first["template"], second["template"]
    yield "rubrics", *_rubrics(first, second)
    yield "reranker", {"model": first["reranker"]}, {"model": second["reranker"]}
    yield "adapters", _adapters(first), _adapters(second)
    yield "versions", first["versions"], second["versions"]


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ, those of nested mappings joined by dots. What only one of the two has is one difference, however large."""
    for key in dict.fromkeys([*first, *second]):
        one, other = _nested(first.get(key)), _nested(second.get(key))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from ((f"{key}.{inner}", own, others) for inner, own, others in _different(one, other))
        elif one != other:
            yield key, first.get(key), second.get(key)


def _nested(value: Any) -> Any:
    """Lists of mappings by the places of their entries; other lists are values."""
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        return {str(place): entry for place, entry in enumerate(value)}
    return value


def _files(report: Report) -> dict[str, Any]:
    return {**report["inputs"]["files"], **report["inputs"]["corpus"]}


def _by_content(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Without the files that both have: the same contents under another name are the same data."""
    ones, others = set(first.values()), set(second.values())
    return (
        {name: content for name, content in first.items() if content not in others},
        {name: content for name, content in second.items() if content not in ones},
    )


def _others(report: Report) -> dict[str, Any]:
    return {name: value for name, value in report["inputs"].items() if name not in _OWN_PARTS}


def _rubrics(first: Report, second: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """Without those that both have: one hash is one rubric, whenever it was created."""
    ones, others = ({rubric["criterion"]: rubric for rubric in report["rubrics"]} for report in (first, second))
    same = {name for name, rubric in ones.items() if name in others and others[name]["hash"] == rubric["hash"]}
    left_one, left_other = ({name: _asked(rubric) for name, rubric in rubrics.items() if name not in same} for rubrics in (ones, others))
    return left_one, left_other


def _asked(rubric: Mapping[str, Any]) -> dict[str, Any]:
    details = {name: value for name, value in rubric["details"].items() if name not in ("hash", "criterion", "create_time", "run_count")}
    return {"hash": rubric["hash"], "run_count": rubric["run_count"], **details}


def _adapters(report: Report) -> dict[str, Any]:
    return {f"{one['family']}-{one['size']}-s{one['seed']}": one["weights_sha256"] for one in report["adapters"]}
