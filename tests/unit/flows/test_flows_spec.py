"""A spec is read strictly: every mistake is named, with the nearest right name, and all of them at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.errors import UserError
from flows.spec_file import SpecError, load

GOOD: dict[str, Any] = {
    "name": "trial",
    "data": {"reader": "qasper", "path": "q.json", "test_items": 20},
    "models": {"small": {"base": "./base"}},
    "training": {"raft": {"model": "small", "context": "raft", "sizes": [10, 20], "seeds": [1, 2]}},
    "arms": {"base": {"model": "small"}, "raft": {"adapter": "raft"}},
    "analysis": {"control": "base", "primary": {"arm": "raft", "size": 20}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the value at a dotted path replaced, or removed when it is ..."""
    spec: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    place = spec
    *parents, last = path.split(".")
    for step in parents:
        place = place.setdefault(step, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return spec


def problems(tmp_path: Path, spec: Any) -> list[str]:
    path = tmp_path / "spec.yaml"
    path.write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec))
    with pytest.raises(SpecError) as caught:
        load(path)
    return caught.value.problems


def test_a_good_spec_expands_to_one_contestant_a_size_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    loaded = load(path)
    assert [one.id for one in loaded.spec.contestants()] == ["base", "raft-10-s1", "raft-10-s2", "raft-20-s1", "raft-20-s2"]
    assert loaded.spec.primary_arm() == "raft-20"
    assert loaded.base("small") == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("data.test_item", 3, "data.test_item: unknown key; did you mean 'test_items'?"),
        ("retrieval.chunk.max_token", 9, "retrieval.chunk.max_token: unknown key; did you mean 'max_tokens'?"),
        ("training.raft.lora.rnk", 9, "training.raft.lora.rnk: unknown key; did you mean 'rank'?"),
        ("training.raft.context", {"raft": {"gold_prob": 1}}, "did you mean 'gold_probability'?"),
        ("training.raft.context", "golden", "Input should be 'none', 'gold' or 'retrieved'"),
        ("training.raft.model", "smal", "training.raft.model: there is no 'smal'; did you mean 'small'?"),
        ("training.raft.sizes", [10, 10], "sizes must be different"),
        ("training.raft.micro_batch_size", 5, "must divide batch_size"),
        ("training.raft", {"model": "small", "sizes": [20], "epochs": 1, "max_steps": 3}, "epochs or max_steps, not both"),
        ("training.raft.virtual_tokens", 8, "virtual_tokens does not go with method sft"),
        (
            "training.raft",
            {"model": "small", "sizes": [20], "method": "full", "lora": {"rank": 4}, "virtual_tokens": 4, "initial_text": "x"},
            "initial_text, lora, virtual_tokens does not go with method full",
        ),
        (
            "training.raft",
            {"model": "small", "sizes": [20], "method": "prompt_tuning", "lora": {"rank": 4}},
            "lora does not go with method",
        ),
        ("training.raft.keep_best", True, "keep_best and patience go by the evaluation loss: set evaluation"),
        ("training.raft.evaluation", 1.0, "less than 1"),
        ("training.raft.knowledge.sample", 3, "training.raft.knowledge.sample: unknown key; did you mean 'samples'?"),
        ("training.raft.knowledge.keep", ["known"], "Input should be 'highly_known', 'maybe_known', 'weakly_known' or 'unknown'"),
        ("training.raft.knowledge.keep", [], "training.raft.knowledge.keep"),
        ("training.raft.knowledge.keep", ["unknown", "unknown"], "keep names unknown twice"),
        ("training.raft.knowledge.temperature", 0, "greater than 0"),
        ("training.raft.knowledge.evaluate_on", ["unknown"], "knowledge.evaluate_on says which questions to evaluate on: set evaluation"),
        (
            "training.raft",
            {"model": "small", "sizes": [20], "evaluation": 0.1, "knowledge": {"keep": ["unknown"], "evaluate_on": ["maybe_known"]}},
            "training.raft.knowledge: evaluate_on names maybe_known, which keep leaves out",
        ),
        (
            "training.raft",
            {"model": "small", "sizes": [20], "method": "dpo", "preferences": {"file": "pairs.jsonl"}, "knowledge": {}},
            "knowledge does not go with method dpo",
        ),
        ("arms.raft", {"adapter": "rafd"}, "arms.raft.adapter: there is no 'rafd'; did you mean 'raft'?"),
        ("arms.raft", {"adapter": "raft", "model": "small"}, "either model or adapter"),
        ("analysis.control", "bse", "analysis.control: there is no 'bse'; did you mean 'base'?"),
        ("analysis.control", "raft", "the control must be one arm without an adapter"),
        ("analysis.primary.size", 15, "raft has no size 15; its sizes are 10, 20"),
        ("analysis.primary", {"arm": "raft"}, "say which of raft's sizes (10, 20)"),
        ("analysis.primary.arm", "base", "is the control itself"),
        ("analysis.primary.criterion", "style", "there is no 'style'"),
        ("analysis.margin", -1, "analysis.margin: Input should be greater than or equal to 0 (given: -1)"),
        ("retrieval.k", 0, "retrieval.k"),
        ("retrieval.window", 2, "window (2) must be at least k (5)"),
        ("retrieval.chunk", {"overlap": 300}, "overlap (300) must be smaller than max_tokens (200)"),
        ("retrieval.chunk", {"overlap": 3}, "retrieval.chunk: overlap goes with unit: tokens; unit: paragraph does not overlap"),
        ("retrieval.chunk.unit", "sentence", "retrieval.chunk.unit: Input should be 'document', 'section', 'paragraph', 'sentences' or"),
        ("retrieval.chunk.count", "tokens", "retrieval.chunk.count: Input should be 'words' or 'encoder'"),
        ("retrieval.chunk", {"window": 2, "stride": 1}, "window goes with unit: sentences; with unit: paragraph leave it out; stride goes"),
        ("retrieval.chunk", {"unit": "sentences", "stride": 4}, "stride (4) must be at most window (3), or sentences would be lost"),
        ("retrieval.chunk", {"unit": "document", "parent": "section"}, "parent: section needs passages that are smaller"),
        ("retrieval.chunk", {"parent_max_tokens": 90}, "parent_max_tokens goes with parent: section or document; leave it out"),
        ("retrieval.chunk", {"parent": "section", "parent_max_tokens": 90}, "parent_max_tokens (90) must be at least max_tokens (200)"),
        ("decoding.samples", 3, "need a temperature above 0"),
        ("judge.runs", 3, "runs above 1 would repeat the same score"),
        ("models", ..., "models: Field required"),
    ],
)
def test_a_mistake_is_named_with_what_to_do(tmp_path: Path, path: str, value: Any, said: str) -> None:
    assert any(said in problem for problem in problems(tmp_path, changed(path, value)))


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    spec = changed("data.test_item", 3)
    spec["models"]["small"] = {"bas": "x"}
    spec["analysis"]["margin"] = -1
    assert len(problems(tmp_path, spec)) == 3


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    assert "given twice" in problems(tmp_path, "name: a\nname: b\n")[0]


def test_a_learning_rate_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(changed("training.raft.learning_rate", 0.5)).replace("0.5", "1e-3"))
    assert load(path).spec.training["raft"].learning_rate == 1e-3


def test_two_arms_that_expand_to_one_name_are_refused(tmp_path: Path) -> None:
    spec = changed("arms.raft-10", {"model": "small"})
    spec["training"]["raft"]["seeds"] = [1]
    spec["arms"]["raft-10-s1"] = {"model": "small"}
    assert any("raft-10-s1" in problem for problem in problems(tmp_path, spec))


@pytest.mark.parametrize("text", ["", "- a list", "just words", "name: [unclosed"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


def test_a_missing_file_says_where_to_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.yaml")
