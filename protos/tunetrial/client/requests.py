"""Requests of the contract from plain values. Knows no channel; the generator checks what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, Unpack

from tunetrial import prompts
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2
from tunetrial.retriever.v1 import retriever_pb2

Turn: TypeAlias = tuple[str, str]
"""Who speaks (`system`, `user` or `assistant`), and what is said."""

Passage: TypeAlias = common_pb2.Passage | tuple[str, str]
"""A passage of the contract, or its id and text."""

Request: TypeAlias = generator_pb2.GenerateRequest | generator_pb2.AnswerRequest
"""What a batch can ask."""

_ROLES: Mapping[str, common_pb2.Role.ValueType] = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}


class Decoding(TypedDict, total=False):
    """How to sample, in the names and units of the contract's `Decoding`. What is left out is unset there: greedy, up to 256 tokens.

    At most one of json_schema, regex and choices says what the text must be; not every engine can keep that (DECODING_UNSUPPORTED).
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]
    top_log_probabilities: int
    json_schema: Mapping[str, Any]
    regex: str
    choices: Sequence[str]


class Asking(Decoding, total=False):
    """What can be said about a question: the arguments of `answer_request`."""

    passages: Iterable[Passage] | None
    index: str | None
    search: retriever_pb2.SearchSettings | None
    template: str | common_pb2.PromptTemplate | None
    cut_passages: bool


def generate_request(model: str, prompt: str | Iterable[Turn], **decoding: Unpack[Decoding]) -> generator_pb2.GenerateRequest:
    """One prompt to a model: text is sent as it is, turns are rendered by the model's own chat template.

    Raises ValueError for a role that is not known, and for more than one constraint.
    """
    if isinstance(prompt, str):
        given = generator_pb2.Prompt(text=prompt)
    else:
        turns = [common_pb2.Message(role=_role(role), content=content) for role, content in prompt]
        given = generator_pb2.Prompt(conversation=generator_pb2.Conversation(messages=turns))
    return generator_pb2.GenerateRequest(model=model, prompt=given, decoding=_decoding(decoding))


def answer_request(
    model: str,
    question: str,
    *,
    passages: Iterable[Passage] | None = None,
    index: str | None = None,
    search: retriever_pb2.SearchSettings | None = None,
    template: str | common_pb2.PromptTemplate | None = None,
    cut_passages: bool = False,
    **decoding: Unpack[Decoding],
) -> generator_pb2.AnswerRequest:
    """A question over the passages given, over those that a search in `index` finds, or over none.

    `template` is one of the contract or the name of one that ships (`numbered/v1`); None takes the service's. `cut_passages` leaves out the
    last passages when the prompt is too long, where it would else be refused. Raises ValueError when passages and index are both given,
    when `search` comes without index, for a template's name that is not known, and for more than one constraint.
    """
    if passages is not None and index is not None:
        raise ValueError("give passages or an index, not both")
    if search is not None and index is None:
        raise ValueError("search says how to search an index: give index as well")
    request = generator_pb2.AnswerRequest(model=model, question=question, decoding=_decoding(decoding))
    if passages is not None:
        request.passages.CopyFrom(generator_pb2.PassageList(passages=[_passage(passage) for passage in passages]))
    if index is not None:
        request.retrieval.CopyFrom(generator_pb2.Retrieval(index=index, settings=search))
    if template is not None:
        request.template.CopyFrom(_template(template) if isinstance(template, str) else template)
    if cut_passages:
        request.overflow = generator_pb2.OVERFLOW_CUT_PASSAGES
    return request


def batch_request(given: tuple[str, Request], max_bytes: int) -> generator_pb2.BatchGenerateRequest:
    """A request among many. Raises ValueError for one larger than `max_bytes`, which would break the stream for all."""
    name, request = given
    if isinstance(request, generator_pb2.GenerateRequest):
        made = generator_pb2.BatchGenerateRequest(id=name, generate=request)
    else:
        made = generator_pb2.BatchGenerateRequest(id=name, answer=request)
    if made.ByteSize() > max_bytes:
        raise ValueError(f"request {name!r} has {made.ByteSize()} bytes, more than max_message_bytes, {max_bytes}")
    return made


def _decoding(given: Decoding) -> generator_pb2.Decoding:
    settings: dict[str, Any] = dict(given)
    constraints = [name for name in ("json_schema", "regex", "choices") if name in settings]
    if len(constraints) > 1:
        raise ValueError(f"{' and '.join(constraints)} exclude each other: give one")
    values = {name: settings.pop(name) for name in constraints}
    decoding = generator_pb2.Decoding(**settings)
    if "json_schema" in values:
        decoding.constraint.json_schema = json.dumps(values["json_schema"])
    if "regex" in values:
        decoding.constraint.regex = values["regex"]
    if "choices" in values:
        decoding.constraint.choices.texts.extend(values["choices"])
    return decoding


def _role(name: str) -> common_pb2.Role.ValueType:
    if name not in _ROLES:
        raise ValueError(f"role {name!r} is not known: take one of {', '.join(_ROLES)}")
    return _ROLES[name]


def _passage(given: Passage) -> common_pb2.Passage:
    return given if isinstance(given, common_pb2.Passage) else common_pb2.Passage(id=given[0], text=given[1])


def _template(name: str) -> common_pb2.PromptTemplate:
    if name not in prompts.names():
        raise ValueError(f"template {name!r} does not ship: take one of {', '.join(prompts.names())}, or give a PromptTemplate")
    return prompts.load(name)
