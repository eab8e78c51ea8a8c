"""What is sent to a provider, of every format of conversations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJobEvent
from tunetrial.trainer.v1 import trainer_pb2

from services.common.errors import InvalidArgument
from services.trainer.hosted_client import _metric
from services.trainer.hosted_data import chat_rows, write_chat_file
from services.trainer.servicer import to_spec
from services.trainer.spec import HostedFineTuning
from tests.unit.trainer.trainer_parts import write_rows

USER, ANSWER = {"role": "user", "content": "où?"}, {"role": "assistant", "content": "ici"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER], "id": 7},
        {"conversations": [{"from": "human", "value": "où?"}, {"from": "gpt", "value": "ici"}]},
        {"prompt": "où?", "completion": "ici"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"instruction": "où?", "output": "ici"},
    ],
)
def test_every_format_is_sent_as_chat_messages(tmp_path: Path, row: dict[str, Any]) -> None:
    [line] = chat_rows(write_rows(tmp_path / "rows.jsonl", [row]), "spec.dataset_uri")
    assert line.decode() == '{"messages": [{"role": "user", "content": "où?"}, {"role": "assistant", "content": "ici"}]}\n'


def test_a_file_is_named_by_what_is_in_it(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"messages": [USER, ANSWER]}] * 2)
    same = write_rows(tmp_path / "same.jsonl", [{"instruction": "où?", "output": "ici"}] * 2)
    sent = tmp_path / "sent"
    chat = write_chat_file(one, sent, "spec.dataset_uri")
    assert (chat.row_count, chat.size) == (2, len(sent.read_bytes()))
    assert chat.name == f"tunetrial-{hashlib.sha256(sent.read_bytes()).hexdigest()}.jsonl"
    assert write_chat_file(same, sent, "spec.dataset_uri") == chat


def test_the_same_hyperparameters_are_the_same_work_however_written() -> None:
    given = HostedFineTuning.given({"b": " 0.10", "a": "3"})
    assert given == HostedFineTuning.given({"a": "3", "b": "0.1"})
    assert json.loads(given.hyperparameters["b"]) == 0.1


@pytest.mark.parametrize("value", ["auto", "[1]", "{}", "null", "NaN", ""])
def test_what_is_no_plain_json_value_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        HostedFineTuning.given({"n_epochs": value})
    assert error.value.metadata["field"] == "hyperparameters.n_epochs"


def test_the_provider_s_name_may_be_given_with_the_method() -> None:
    asked = trainer_pb2.TrainingSpec(adapter_name="one", base="gpt", dataset_uri="d")
    asked.hosted.SetInParent()
    assert to_spec(asked).base == "gpt"
    asked.hosted.model = "gpt-4o-mini"
    assert to_spec(asked).base == "gpt-4o-mini"


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_figures_that_are_no_numbers_are_not_told(value: str) -> None:
    data = {"step": 3, "train_loss": float(value), "total_steps": "nine"}
    event = FineTuningJobEvent.construct(id="e", created_at=1, level="info", message="Step 3/9", object="fine_tuning.job.event", data=data)
    metric = _metric(event)
    assert metric is not None
    assert (metric.step, metric.loss, metric.step_count) == (3, None, 9)
