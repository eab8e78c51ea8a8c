"""What may be frozen, what stands where a draft says nothing, and where rubrics are kept."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.judge import criteria
from services.judge.calibration import agreement
from services.judge.domain import Case, Draft, EngineName, Judge, Judgement, Mode, Pair, Rubric, Usage
from services.judge.rubric_store import JsonRubricStore
from services.judge.rubrics import language_model_rubric, reference_rubric

SHIPPED = criteria.shipped()
OWN = Draft("politeness", "How polite it is.")


def frozen(draft: Draft) -> Rubric:
    return language_model_rubric(draft, SHIPPED, "judge-model")


def test_the_studys_two_criteria_ship_and_need_references() -> None:
    assert {name: criterion.needs_references for name, criterion in SHIPPED.items()} == {"accuracy": True, "completeness": True}


def test_defaults_depend_on_the_mode() -> None:
    samples, probabilities = frozen(Draft("accuracy")), frozen(Draft("accuracy", mode=Mode.TOKEN_PROBABILITIES))
    assert (samples.mode, samples.temperature, samples.run_count, samples.low, samples.high) == (Mode.SAMPLES, 1.0, 10, 1, 5)
    assert (probabilities.temperature, probabilities.run_count) == (0.0, 1)
    assert samples.description == SHIPPED["accuracy"].description
    assert samples.model == "judge-model"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"criterion": ""}, "criterion"),
        ({"criterion": "a\nb"}, "criterion"),
        ({"description": ""}, "description"),
        ({"low": 5, "high": 5}, "high"),
        ({"low": -1}, "high"),
        ({"high": 101}, "high"),
        ({"high": 10, "mode": Mode.TOKEN_PROBABILITIES}, "high"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"run_count": 0}, "run_count"),
        ({"run_count": 101}, "run_count"),
        ({"steps": ("Read.", " ")}, "steps[1]"),
    ],
)
def test_a_draft_that_makes_no_sense_is_refused_by_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        frozen(replace(OWN, **change))  # type: ignore[arg-type]  # one of several fields
    assert caught.value.metadata["field"] == field


def test_without_any_model_the_setting_to_set_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="TUNETRIAL_OPENAI_MODEL") as caught:
        language_model_rubric(OWN, SHIPPED, "")
    assert caught.value.reason == "MODEL_NOT_SET"


@pytest.mark.parametrize(
    "change",
    [
        {"description": "mine"},
        {"steps": ("Read.",)},
        {"mode": Mode.TOKEN_PROBABILITIES},
        {"temperature": 0.0},
        {"run_count": 10},
        {"high": 10},
    ],
)
def test_the_reference_rule_takes_no_instructions(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        reference_rubric(replace(Draft("accuracy"), **change), SHIPPED, frozenset(SHIPPED), "rule")  # type: ignore[arg-type]  # as above


def test_the_hash_covers_everything_but_the_time() -> None:
    rubric = frozen(Draft("accuracy", steps=("Read.",)))
    later = frozen(Draft("accuracy", steps=("Read.",)))
    assert later.hash == rubric.hash
    changes: list[dict[str, object]] = [
        {"criterion": "x"},
        {"description": "x"},
        {"steps": ("Look.",)},
        {"low": 0},
        {"high": 6},
        {"engine": EngineName.REFERENCE},
        {"model": "x"},
        {"mode": None},
        {"temperature": None},
        {"run_count": 2},
    ]
    hashes = {replace(rubric, **change).hash for change in changes}  # type: ignore[arg-type]  # one of several fields
    assert len(hashes | {rubric.hash}) == len(changes) + 1


def test_a_rubric_outlives_the_store_and_keeps_its_first_time(tmp_path: Path) -> None:
    first = frozen(Draft("accuracy", steps=("Lies den Text gründlich.",)))
    assert JsonRubricStore(tmp_path).write(first, "f" * 64) == first
    again = JsonRubricStore(tmp_path).write(frozen(Draft("accuracy", steps=("Lies den Text gründlich.",))), "e" * 64)
    assert again.create_time == first.create_time
    assert JsonRubricStore(tmp_path).read(first.hash) == first
    assert JsonRubricStore(tmp_path).read_written_for("e" * 64) == first
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".partial")]


@pytest.mark.parametrize("damage", ["changed", "broken", "empty"])
def test_a_rubric_that_was_edited_or_broken_on_disk_is_not_used(tmp_path: Path, damage: str) -> None:
    rubric = JsonRubricStore(tmp_path).write(frozen(Draft("accuracy", steps=("Read.",))), "f" * 64)
    path = tmp_path / "rubrics" / f"{rubric.hash}.json"
    data = json.loads(path.read_text())
    data["steps"] = ["Be kind."]
    path.write_text({"changed": json.dumps(data), "broken": path.read_text()[:40], "empty": "{}"}[damage])
    with pytest.raises(FailedPrecondition) as caught:
        JsonRubricStore(tmp_path).read(rubric.hash)
    assert caught.value.reason == "RUBRIC_CHANGED"


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceExhausted, match="TUNETRIAL_DATA_DIR"):
        JsonRubricStore(tmp_path / "file").write(frozen(OWN), "f" * 64)


class CountingEngine:
    """Behind the engine's port: writes steps slowly and counts how often."""

    def __init__(self) -> None:
        self.written = 0

    def freeze(self, draft: Draft) -> Rubric:
        return frozen(draft)

    async def write_steps(self, rubric: Rubric) -> tuple[tuple[str, ...], Usage]:
        self.written += 1
        await asyncio.sleep(0.01)
        return ("Read.", "Score."), Usage(7, 3, 1.0, 0.5)

    async def judge(self, rubric: Rubric, case: Case, run_count: int, seed: int | None) -> Judgement:
        raise AssertionError("no judging here")


def make_judge(folder: Path, engine: CountingEngine) -> Judge:
    return Judge({EngineName.OPENAI: engine}, EngineName.OPENAI, SHIPPED, JsonRubricStore(folder), agreement)


async def test_steps_are_written_once_however_often_and_whenever_they_are_asked_for(tmp_path: Path) -> None:
    engine = CountingEngine()
    judge = make_judge(tmp_path, engine)
    results = await asyncio.gather(*(judge.create_rubric(Draft("accuracy")) for _ in range(8)))
    results.append(await judge.create_rubric(Draft("accuracy", run_count=10)))
    results.append(await make_judge(tmp_path, engine).create_rubric(Draft("accuracy", temperature=1.0)))
    assert engine.written == 1
    assert len({rubric.hash for rubric, _ in results}) == 1
    assert sorted(usage.prompt_tokens for _, usage in results) == [0] * 9 + [7]


async def test_steps_that_are_given_are_frozen_without_asking_the_model(tmp_path: Path) -> None:
    engine = CountingEngine()
    rubric, usage = await make_judge(tmp_path, engine).create_rubric(Draft("accuracy", steps=("Read.",)))
    assert (rubric.steps, usage, engine.written) == (("Read.",), Usage(), 0)


async def test_what_is_missing_is_said_by_name(tmp_path: Path) -> None:
    judge = make_judge(tmp_path, CountingEngine())
    rubric, _ = await judge.create_rubric(Draft("accuracy"))
    with pytest.raises(NotFound, match="no rubric"):
        await judge.rubric("../x")
    with pytest.raises(InvalidArgument) as caught:
        await judge.score(rubric.hash, Case("q", "a"), None, None)
    assert caught.value.reason == "REFERENCES_MISSING"
    with pytest.raises(FailedPrecondition) as precondition:
        await judge.create_rubric(Draft("accuracy", engine=EngineName.REFERENCE))
    assert precondition.value.reason == "ENGINE_NOT_CONFIGURED"
    with pytest.raises(InvalidArgument) as few:
        await judge.calibrate(rubric.hash, [Pair(1, 1)] * 9)
    assert few.value.reason == "LABELS_TOO_FEW"
    with pytest.raises(InvalidArgument) as off_scale:
        await judge.calibrate(rubric.hash, [Pair(1, 1)] * 9 + [Pair(float("nan"), 1)])
    assert off_scale.value.metadata["field"] == "pairs[9].judge_score"
