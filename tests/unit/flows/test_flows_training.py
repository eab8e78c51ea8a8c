"""What the flow asks of the trainer: rows to train on and to evaluate on, and the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_flows_chunking import trial
from tunetrial.trainer.v1 import trainer_pb2

from flows.errors import UserError
from flows.stages.prepare import prepare
from flows.stages.train import AdapterKey, _divided, _examples, _method
from flows.training_spec import TrainingSpec

SHARE = 0.4


async def rows(folder: Path, size: int, share: float = SHARE) -> tuple[list[str], list[str]]:
    """Questions to train on and to evaluate on."""
    opened = trial(folder, {}, training={"context": "none", "sizes": [size], "evaluation": share})
    prepared = await prepare(opened)
    examples, _ = _examples(opened, prepared, None, opened.spec.training["served"], size)
    kept, shown = _divided(opened, prepared, examples, AdapterKey("served", size, 1))
    trained, evaluated = ([row["messages"][0]["content"] for row in part] for part in (kept, shown))
    assert {len(row["messages"]) for row in (*kept, *shown)} == {2}
    return trained, evaluated


async def test_whole_clusters_are_kept_for_evaluation_and_larger_sets_keep_them_too(tmp_path: Path) -> None:
    trained, evaluated = await rows(tmp_path, 5)
    assert len(trained) + len(evaluated) == 5
    assert trained
    assert evaluated
    more_trained, more_evaluated = await rows(tmp_path, 8)
    assert set(trained) <= set(more_trained)
    assert set(evaluated) <= set(more_evaluated)


async def test_a_share_that_leaves_nothing_on_one_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of 2 training questions 0 would be kept for evaluation \(share 0.001, whole clusters\)"):
        await rows(tmp_path, 2, 0.001)


async def test_without_a_share_all_are_trained_on(tmp_path: Path) -> None:
    opened = trial(tmp_path, {}, training={"context": "none", "sizes": [5]})
    prepared = await prepare(opened)
    examples, _ = _examples(opened, prepared, None, opened.spec.training["served"], 5)
    kept, shown = _divided(opened, prepared, examples, AdapterKey("served", 5, 1))
    assert (len(kept), shown) == (5, [])


def test_the_recipe_says_all_that_the_spec_says_and_leaves_the_rest_open() -> None:
    given = TrainingSpec(
        model="small", sizes=(4,), epochs=2.0, evaluation=0.2, patience=2, precision="bfloat16", lora={"rank": 4, "dora": True}
    )
    sft = _method(given)["sft"]
    assert (sft.lora.rank, sft.lora.dora, sft.lora.HasField("alpha")) == (4, True, False)
    course = sft.optimization
    assert (course.epochs, course.patience, course.precision, course.keep_best) == (2.0, 2, "bfloat16", False)
    assert not course.HasField("max_steps")
    assert not course.HasField("gradient_checkpointing")
    soft = TrainingSpec(model="small", sizes=(4,), method="prompt_tuning", virtual_tokens=8, max_steps=3)
    tuning = _method(soft)["prompt_tuning"]
    assert isinstance(tuning, trainer_pb2.PromptTuning)
    assert (tuning.virtual_tokens, tuning.HasField("initial_text"), tuning.optimization.max_steps) == (8, False, 3)
    whole = _method(TrainingSpec(model="small", sizes=(4,), method="full", epochs=2.0))["full"]
    assert isinstance(whole, trainer_pb2.FullFineTuning)
    # The rate is the trainer's own for this method.
    assert (whole.optimization.epochs, whole.optimization.HasField("learning_rate")) == (2.0, False)
