"""Verdicts of two runs on the same arm and criterion. Knows reports, no scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VerdictPair:
    """What both runs say of an arm on a criterion; `first` and `second` are in short, with difference and interval.

    A change means something where `unlike` is empty: else it lists what the two verdicts do not share.
    """

    arm: str
    criterion: str
    primary: bool
    first_verdict: str
    second_verdict: str
    first: str
    second: str
    changed: bool
    unlike: tuple[str, ...]


def verdict_pairs(
    first: Mapping[str, Any], second: Mapping[str, Any], *, same_items: bool, criteria: Sequence[str]
) -> tuple[VerdictPair, ...]:
    """The contrasts that both runs have, in the order of the first. `criteria` are those that both judged by one rubric."""
    others = {(one["arm"], one["criterion"]): one for one in second["contrasts"]}
    shared = tuple(_unlike(first, second, same_items=same_items))
    pairs = []
    for one in first["contrasts"]:
        other = others.get((one["arm"], one["criterion"]))
        if other is None:
            continue
        unlike = [*shared, *([] if one["criterion"] in criteria else ["the rubric"])]
        if one["primary"] != other["primary"]:
            unlike.append("primary in one run only")
        elif not one["primary"] and len(first["contrasts"]) != len(second["contrasts"]):
            unlike.append(f"corrected for {len(first['contrasts']) - 1} and {len(second['contrasts']) - 1} contrasts")
        pairs.append(
            VerdictPair(
                arm=one["arm"],
                criterion=one["criterion"],
                primary=one["primary"] and other["primary"],
                first_verdict=one["verdict"],
                second_verdict=other["verdict"],
                first=one["short"],
                second=other["short"],
                changed=one["verdict"] != other["verdict"],
                unlike=tuple(unlike),
            )
        )
    return tuple(pairs)


def _unlike(first: Mapping[str, Any], second: Mapping[str, Any], *, same_items: bool) -> Iterator[str]:
    one, other = first["settings"]["analysis"], second["settings"]["analysis"]
    if not same_items:
        yield "the questions"
    for name in ("control", "margin", "alpha"):
        if one[name] != other[name]:
            yield f"the {name} ({one[name]} and {other[name]})"
