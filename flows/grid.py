"""A family with a grid as the families that it stands for, and its arms with them. Knows a spec as it was written, before it is checked.

`lora: {grid: {rank: [8, 16], context: [none, gold]}, ...}` stands for `lora-rank8-none`, `lora-rank8-gold`, `lora-rank16-none` and
`lora-rank16-gold`; an arm `tuned: {adapter: lora}` for `tuned-rank8-none` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from flows.training_spec import OF_LORA, TrainingSpec

_LARGEST = 100
_NOT_IN_GRIDS = {"model", "sizes", "seeds", "lora", "preferences", "knowledge", "search", "grid", "initial_text"}


class GridMistake(Exception):
    """A grid that stands for nothing; the message names the key."""


def expanded(raw: Mapping[Any, Any]) -> dict[Any, Any]:
    """The spec without grids. Raises GridMistake."""
    training, arms = raw.get("training"), raw.get("arms")
    if not isinstance(training, dict) or not isinstance(arms, dict):
        return dict(raw)
    families: dict[Any, Any] = {}
    parts: dict[Any, list[str]] = {}
    for name, family in training.items():
        if isinstance(family, dict) and family.get("grid") is not None:
            cells = dict(_cells(name, family))
            parts[name] = list(cells)
            _add(families, {f"{name}-{suffix}": cell for suffix, cell in cells.items()}, "training")
        else:
            _add(families, {name: family}, "training")
    competing: dict[Any, Any] = {}
    for name, arm in arms.items():
        family = arm.get("adapter") if isinstance(arm, dict) else None
        if isinstance(family, str) and family in parts:
            _add(competing, {f"{name}-{suffix}": arm | {"adapter": f"{family}-{suffix}"} for suffix in parts[family]}, "arms")
        else:
            _add(competing, {name: arm}, "arms")
    return {**raw, "training": families, "arms": competing}


def _add(found: dict[Any, Any], more: Mapping[Any, Any], where: str) -> None:
    if twice := sorted(str(name) for name in more if name in found):
        raise GridMistake(f"{where}.{twice[0]}: a grid stands for it, and it is named beside the grid too, or by another one; rename one")
    found |= more


def _cells(name: Any, family: Mapping[Any, Any]) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Each combination: what it is called, and the family with it."""
    grid = family["grid"]
    if not isinstance(grid, dict) or not grid:
        raise GridMistake(f"training.{name}.grid: names settings with a list of values each, such as rank: [8, 16]")
    if not isinstance(family.get("lora") or {}, dict):
        raise GridMistake(f"training.{name}.lora: names settings with their values, such as rank: 8")
    known = [*(key for key in TrainingSpec.model_fields if key not in _NOT_IN_GRIDS), *OF_LORA]
    search = family.get("search")
    searched = search.get("parameters") if isinstance(search, dict) else None
    for key, values in grid.items():
        where = f"training.{name}.grid.{key}"
        if key not in known:
            raise GridMistake(f"{where}: is no setting of a grid; known are {', '.join(known)}")
        if key in family or key in (family.get("lora") or {}) or key in (searched or {}):
            raise GridMistake(f"{where}: is given beside the grid too; leave one out")
        if not isinstance(values, list) or not values or not all(isinstance(value, bool | int | float | str) for value in values):
            raise GridMistake(f"{where}: is a list of one value or more, each a number, a text, or true or false")
        if len({_called(key, value) for value in values}) < len(values):
            raise GridMistake(f"{where}: holds a value twice")
    combinations = list(product(*grid.values()))
    if len(combinations) > _LARGEST:
        raise GridMistake(f"training.{name}.grid: stands for {len(combinations)} families; {_LARGEST} are the most, or let `search` look")
    for values in combinations:
        settings = dict(zip(grid, values, strict=True))
        cell = {key: value for key, value in family.items() if key != "grid"}
        if of_lora := {key: value for key, value in settings.items() if key in OF_LORA}:
            cell["lora"] = (cell.get("lora") or {}) | of_lora
        cell |= {key: value for key, value in settings.items() if key not in of_lora}
        yield "-".join(_called(key, value) for key, value in settings.items()), cell


def _called(key: str, value: bool | float | str) -> str:
    """`rank8`, `dora` or `no-dora`, `gold`."""
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    return value if isinstance(value, str) else f"{key}{value:g}"
