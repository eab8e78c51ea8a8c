"""Families that a provider trains, in a spec."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flows.spec import Spec
from flows.spec_file import _contradictions
from flows.stages.train import _method
from flows.training_spec import TrainingSpec

FAMILY: dict[str, Any] = {
    "model": "gpt",
    "method": "hosted",
    "context": "gold",
    "sizes": [20],
    "hyperparameters": {"n_epochs": 3, "batch_size": "auto"},
}


def spec_of(**family: Any) -> Spec:
    return Spec.model_validate(
        {
            "name": "x",
            "data": {"reader": "qasper", "path": "x.json", "test_items": 3},
            "models": {"gpt": {"engine": "openai", "model": "gpt-small"}, "own": {"base": "./base"}},
            "training": {"tuned": FAMILY | family},
            "arms": {"base": {"model": "gpt"}, "tuned": {"adapter": "tuned"}},
            "analysis": {"control": "base", "primary": {"arm": "tuned"}},
        }
    )


def test_hyperparameters_go_to_the_trainer_as_json() -> None:
    training = TrainingSpec.model_validate(FAMILY)
    assert dict(_method(training)["hosted"].hyperparameters) == {"n_epochs": "3", "batch_size": '"auto"'}
    assert training.recipe() == {"method": "hosted", "hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}


@pytest.mark.parametrize("key", [{"epochs": 2}, {"lora": {"rank": 8}}, {"learning_rate": 0.1}, {"keep_best": True, "evaluation": 0.2}])
def test_what_the_provider_decides_is_refused(key: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(key))} does not go with method hosted"):
        TrainingSpec.model_validate(FAMILY | key)


def test_hyperparameters_of_a_provider_go_with_no_other_method() -> None:
    with pytest.raises(ValidationError, match="hyperparameters does not go with method sft"):
        TrainingSpec.model_validate(FAMILY | {"method": "sft"})


def test_what_a_provider_trains_is_its_own_model() -> None:
    assert not [problem for problem in _contradictions(spec_of()) if problem.startswith("training")]
    [problem] = [problem for problem in _contradictions(spec_of(model="own")) if problem.startswith("training")]
    assert "own has weights here" in problem
