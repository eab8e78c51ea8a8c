"""What a user may write to measure retrieval: the keys of a study, mistakes in them, and the conditions that come of a grid."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.errors import UserError
from flows.retrieval_study.conditions import conditions
from flows.spec_file import SpecError, load, load_study

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart" / "trial.yaml"
DATA = {"reader": "beir", "path": "towns"}


def names(tmp_path: Path, retrieval: dict[str, Any] | None = None, **grid: Any) -> list[str]:
    spec = {"name": "s", "data": DATA, "retrieval": retrieval or {}, "grid": grid}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec))
    return [condition.name for condition in conditions(load_study(tmp_path / "study.yaml").spec)]


def test_without_a_grid_the_usual_four_are_tried_and_reranking_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "s", "data": DATA}))
    found = conditions(load_study(tmp_path / "study.yaml").spec)
    assert [(one.name, one.optional) for one in found] == [
        ("lexical", False),
        ("dense", False),
        ("hybrid", False),
        ("hybrid + rerank", True),
    ]
    assert [one.retrieval.rerank for one in found] == [False, False, False, True]


@pytest.mark.parametrize(
    ("retrieval", "grid", "expected"),
    [
        ({}, {"mode": ["dense", "lexical"]}, ["dense", "lexical"]),
        ({"mode": "dense"}, {"rerank": [False, True]}, ["dense", "dense + rerank"]),
        ({"rerank": True}, {"mode": "hybrid"}, ["hybrid + rerank"]),
        ({}, {"mode": ["lexical", "hybrid"], "rerank": True}, ["lexical + rerank", "hybrid + rerank"]),
        ({"k": 7}, {"mode": "lexical", "k": [3, 9]}, ["lexical · k 3", "lexical · k 9"]),
        ({}, {"mode": "dense", "encoder": ["", "a/x", "b/x", "a/y"]}, [f"dense · {n}" for n in ("default encoder", "a/x", "b/x", "y")]),
        ({}, {"mode": ["lexical", "dense"], "encoder": ["a/x", "a/y"]}, ["lexical", "dense · x", "dense · y"]),
        (
            {},
            {
                "mode": "lexical",
                "chunk": [{"unit": "section"}, {"unit": "tokens", "max_tokens": 64}, {"unit": "tokens", "max_tokens": 128}],
            },
            ["lexical · section", "lexical · tokens, max tokens 64", "lexical · tokens, max tokens 128"],
        ),
        (
            {"chunk": {"count": "encoder"}},
            {"mode": "lexical", "encoder": ["a/x", "a/y"]},
            ["lexical · x", "lexical · y"],
        ),
    ],
)
def test_a_grid_is_every_combination_named_by_what_differs(
    tmp_path: Path, retrieval: dict[str, Any], grid: dict[str, Any], expected: list[str]
) -> None:
    assert names(tmp_path, retrieval, **grid) == expected


def test_reranking_that_the_spec_asks_for_is_not_optional(tmp_path: Path) -> None:
    for spec in ({"retrieval": {"rerank": True}}, {"grid": {"rerank": [True]}}):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "s", "data": DATA, **spec}))
        found = conditions(load_study(tmp_path / "study.yaml").spec)
        assert not any(one.optional for one in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gird": {}}, "gird: unknown key; did you mean 'grid'?"),
        ({"grid": {"mod": ["dense"]}}, "grid.mod: unknown key; did you mean 'mode'?"),
        ({"grid": {"mode": ["sparse"]}}, "grid.mode.0"),
        ({"grid": {"mode": []}}, "at least 1"),
        ({"grid": {"k": [5, 5]}}, "k names a value twice"),
        ({"grid": {"k": [500]}}, "grid.k.0"),
        ({"grid": {"depths": [0]}}, "grid.depths.0"),
        ({"grid": {"depths": [5000]}}, "grid.depths.0"),
        ({"grid": {"k": [20]}, "retrieval": {"window": 10}}, "grid.k: 20 is more than retrieval.window (10)"),
        ({"data": {"reader": "bier", "path": "x"}}, "data.sources.0.reader"),
        ({"data": {"reader": "beir", "path": "x", "split": ""}}, "data.sources.0.split"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "s", "data": DATA, **change}))
    with pytest.raises(SpecError) as caught:
        load_study(tmp_path / "study.yaml")
    assert said in str(caught.value)


def test_a_trials_yaml_gives_its_data_and_retrieval(tmp_path: Path) -> None:
    study, trial = load_study(QUICKSTART), load(QUICKSTART)
    assert (study.spec.name, study.spec.data, study.spec.retrieval) == (trial.spec.name, trial.spec.data, trial.spec.retrieval)
    assert study.resolve(Path("data")) == trial.resolve(Path("data"))


def test_a_folder_is_a_study_of_whole_documents_measured_at_ten(tmp_path: Path) -> None:
    folder = tmp_path / "my corpus (v2)"
    folder.mkdir()
    study = load_study(folder)
    assert study.spec.name == "my-corpus--v2-"
    assert study.resolve(study.spec.data.sources[0].path) == folder
    assert (study.spec.retrieval.k, study.spec.retrieval.chunk.unit) == (10, "document")


def test_a_trial_on_beir_data_is_refused_with_the_command_that_measures_them(tmp_path: Path) -> None:
    spec = yaml.safe_load(QUICKSTART.read_text())
    spec["data"] = {"reader": "beir", "path": "towns"}
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(SpecError, match="beir has no answers to judge by; `tunetrial retrieval`"):
        load(tmp_path / "trial.yaml")


def test_a_spec_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_study(tmp_path / "none.yaml")
