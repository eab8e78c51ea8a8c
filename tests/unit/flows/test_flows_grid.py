"""A grid in a spec stands for families and arms of each combination."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.spec_file import SpecError, load

SPEC: dict[str, Any] = {
    "name": "trial",
    "data": {"reader": "qasper", "path": "q.json", "test_items": 20},
    "models": {"small": {"base": "./base"}},
    "training": {
        "lora": {"model": "small", "sizes": [10, 20], "lora": {"dropout": 0.1}, "grid": {"rank": [8, 16], "context": ["none", "gold"]}},
        "plain": {"model": "small", "sizes": [10]},
    },
    "arms": {"base": {"model": "small"}, "tuned": {"adapter": "lora", "rag": False}, "plain": {"adapter": "plain"}},
    "analysis": {"control": "base", "primary": {"arm": "tuned-rank8-gold", "size": 20}},
}


def loaded(folder: Path, **family: Any) -> Any:
    spec = SPEC | {"training": SPEC["training"] | {"lora": SPEC["training"]["lora"] | family}}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return load(folder / "spec.yaml").spec


def test_a_grid_stands_for_families_and_arms_of_each_combination(tmp_path: Path) -> None:
    spec = loaded(tmp_path)
    names = ["rank8-none", "rank8-gold", "rank16-none", "rank16-gold"]
    assert list(spec.training) == [*(f"lora-{name}" for name in names), "plain"]
    assert list(spec.arms) == ["base", *(f"tuned-{name}" for name in names), "plain"]
    found = spec.training["lora-rank16-gold"]
    assert (found.lora.rank, found.lora.dropout, found.context, found.grid) == (16, 0.1, "gold", None)
    assert (spec.arms["tuned-rank16-gold"].adapter, spec.arms["tuned-rank16-gold"].rag) == ("lora-rank16-gold", False)
    assert spec.primary_arm() == "tuned-rank8-gold-20"
    assert len(spec.contestants()) == 1 + 4 * 2 + 1


def test_numbers_and_switches_have_short_names(tmp_path: Path) -> None:
    grid = {"learning_rate": [2e-4], "dora": [True, False]}
    raw = yaml.safe_load(yaml.safe_dump(SPEC))
    raw["training"]["lora"]["grid"], raw["analysis"]["primary"]["arm"] = grid, "tuned-learning_rate0.0002-dora"
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    spec = load(tmp_path / "spec.yaml").spec
    assert [name for name in spec.arms if name.startswith("tuned")] == [
        "tuned-learning_rate0.0002-dora",
        "tuned-learning_rate0.0002-no-dora",
    ]


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ({"grid": {"rnak": [8]}}, "training.lora.grid.rnak: is no setting of a grid; known are method, context"),
        ({"grid": {"sizes": [8]}}, "training.lora.grid.sizes: is no setting of a grid"),
        ({"grid": {"dropout": [0.2]}}, "training.lora.grid.dropout: is given beside the grid too; leave one out"),
        ({"grid": {"rank": 8}}, "training.lora.grid.rank: is a list of one value or more"),
        ({"grid": {"rank": [[8]]}}, "training.lora.grid.rank: is a list of one value or more"),
        ({"grid": {"rank": [8, 8.0]}}, "training.lora.grid.rank: holds a value twice"),
        ({"grid": {}}, "training.lora.grid: names settings with a list of values each"),
        ({"grid": {"rank": list(range(1, 102))}}, "training.lora.grid: stands for 101 families; 100 are the most"),
        ({"evaluation": 0.2, "grid": {"rank": [8]}, "search": {"parameters": {"rank": [4]}}}, "is given beside the grid too"),
        ({"grid": {"rank": [8]}, "lora": 5}, "training.lora.lora: names settings with their values"),
        ({"grid": {"rank": [1024]}}, "training.lora-rank1024.lora.rank: Input should be less than or equal to 512"),
    ],
)
def test_a_grid_that_means_nothing_is_refused_by_its_key(tmp_path: Path, family: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        loaded(tmp_path, **family)
    assert any(said in problem for problem in refused.value.problems), refused.value.problems


@pytest.mark.parametrize("first", [True, False])
def test_a_family_that_a_grid_stands_for_is_not_named_beside_it(tmp_path: Path, first: bool) -> None:
    raw = yaml.safe_load(yaml.safe_dump(SPEC))
    raw["training"]["lora"]["grid"] = {"rank": [8, 16]}
    other = {"lora-rank8": {"model": raw["training"]["lora"]["model"], "sizes": [99]}}
    raw["training"] = other | raw["training"] if first else raw["training"] | other
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(SpecError, match=r"training.lora-rank8: a grid stands for it, and it is named beside"):
        load(tmp_path / "spec.yaml")
