"""What is inside the messages that only wrap something. Knows no channel."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import grpc

from tunetrial.client.errors import GeneratorError, from_failure
from tunetrial.generator.v1 import generator_pb2

Result: TypeAlias = generator_pb2.GenerateResponse | generator_pb2.AnswerResponse | GeneratorError
"""What came of a request among many."""

TextPart: TypeAlias = str | generator_pb2.GenerateResponse
AnswerPart: TypeAlias = generator_pb2.HitList | str | generator_pb2.AnswerResponse


def text_part(response: generator_pb2.StreamGenerateResponse) -> TextPart | None:
    """A piece of text, or the whole at the end; None for what a later contract may add."""
    part = response.WhichOneof("part")
    if part == "text":
        return response.text
    return response.done if part == "done" else None


def answer_part(response: generator_pb2.StreamAnswerResponse) -> AnswerPart | None:
    """The passages shown, a piece of text, or the whole at the end; None for what a later contract may add."""
    part = response.WhichOneof("part")
    if part == "shown":
        return response.shown
    if part == "text":
        return response.text
    return response.done if part == "done" else None


def result_of(response: generator_pb2.BatchGenerateResponse) -> Result:
    """The result of a request among many."""
    kind = response.WhichOneof("result")
    if kind == "failure":
        return from_failure(response.failure)
    if kind == "generate":
        return response.generate
    if kind == "answer":
        return response.answer
    return GeneratorError(grpc.StatusCode.UNIMPLEMENTED, "", "the result is of a kind that this client does not know: install a newer one")


def unanswered(ids: Collection[str]) -> GeneratorError:
    """What to raise when a generator ends a batch as if all were well, and it is not."""
    some = ", ".join(sorted(set(ids))[:3])
    return GeneratorError(grpc.StatusCode.INTERNAL, "", f"the generator ended the batch without a result for {some}")
