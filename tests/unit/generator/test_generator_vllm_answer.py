"""What vLLM sends, as a generation."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import FailedPrecondition, Internal, Unavailable
from services.generator.domain import Decoding, Encoded, Finish, Work
from services.generator.vllm_answer import Answer

USAGE = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
WORK = Work(Encoded("hello", (1, 2)), Decoding(), 8)


def completion(text: str = "hi", finish: str | None = "stop", model: str = "base", **choice: Any) -> dict[str, Any]:
    made = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None, **choice}
    return {"id": "1", "created": 1, "object": "text_completion", "model": model, "choices": [made], "usage": USAGE}


@pytest.mark.parametrize(
    ("finish", "stopped_by", "expected"),
    [("stop", None, Finish.END), ("stop", "END", Finish.STOP), ("length", None, Finish.LENGTH)],
)
def test_each_reason_to_end_is_told(finish: str, stopped_by: str | None, expected: Finish) -> None:
    answer = Answer("base", str, wanted=None)
    assert answer.take(completion(finish=finish, stop_reason=stopped_by), "base") == "hi"
    answer.check_ended()
    assert answer.generation(WORK, 1.0, None).finish is expected


@pytest.mark.parametrize("finish", ["abort", "error", "whatever"])
def test_an_answer_that_vllm_gave_up_is_no_answer(finish: str) -> None:
    with pytest.raises(Unavailable, match=finish):
        Answer("base", str, wanted=None).take(completion(finish=finish), "base")


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    answer = Answer("base", str, wanted=None)
    answer.take(completion(finish=None), "base")
    with pytest.raises(Unavailable, match="broke off"):
        answer.check_ended()


def test_another_models_answer_is_refused() -> None:
    with pytest.raises(Internal) as differs:
        Answer("base", str, wanted=None).take(completion(model="other"), "base")
    assert differs.value.reason == "MODEL_DIFFERS"


def test_log_probabilities_that_do_not_come_are_an_error() -> None:
    answer = Answer("base", str, wanted=0)
    answer.take(completion(), "base")
    with pytest.raises(FailedPrecondition) as refused:
        answer.check_ended()
    assert (refused.value.reason, refused.value.metadata["field"]) == ("DECODING_UNSUPPORTED", "decoding.top_log_probabilities")


@pytest.mark.parametrize("other", ["a page", ["a list"], {"detail": "of a gateway"}])
def test_what_is_no_completion_is_an_engine_that_is_away(other: object) -> None:
    with pytest.raises(Unavailable, match="no completion"):
        Answer("base", str, wanted=None).take(other, "base")
