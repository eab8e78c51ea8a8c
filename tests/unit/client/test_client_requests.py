"""Requests from plain values are the messages that one would write by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tunetrial import prompts
from tunetrial.client import Decoding, answer_request, generate_request
from tunetrial.client.requests import batch_request
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.retriever.v1 import retriever_pb2


def test_text_is_sent_as_it_is_and_turns_as_a_conversation() -> None:
    assert generate_request("m", "as it is") == pb.GenerateRequest(model="m", prompt=pb.Prompt(text="as it is"), decoding=pb.Decoding())
    turns = generate_request("m", [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]).prompt.conversation.messages
    roles = [common_pb2.ROLE_SYSTEM, common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT, common_pb2.ROLE_USER]
    assert [(turn.role, turn.content) for turn in turns] == list(zip(roles, "suav", strict=True))
    with pytest.raises(ValueError, match="role 'bot' is not known: take one of system, user, assistant"):
        generate_request("m", [("bot", "hello")])


def test_every_setting_of_the_contract_can_be_said_and_what_is_not_said_is_unset() -> None:
    names = {field.name for field in pb.Decoding.DESCRIPTOR.fields} - {"constraint"}
    constraints = {field.name for field in pb.Constraint.DESCRIPTOR.fields}
    assert set(Decoding.__annotations__) == names | constraints
    given = generate_request("m", "p", max_tokens=0, temperature=0.0, stop=["\n"], seed=7).decoding
    assert given == pb.Decoding(max_tokens=0, temperature=0, stop=["\n"], seed=7)
    assert not given.HasField("top_p")
    assert not given.HasField("constraint")


def test_a_constraint_is_one_of_three() -> None:
    schema = {"type": "object", "properties": {"born": {"type": "string"}}}
    assert json.loads(generate_request("m", "p", json_schema=schema).decoding.constraint.json_schema) == schema
    assert generate_request("m", "p", regex="[0-9]+").decoding.constraint == pb.Constraint(regex="[0-9]+")
    assert answer_request("m", "q", choices=["yes", "no"]).decoding.constraint.choices.texts == ["yes", "no"]
    with pytest.raises(ValueError, match="json_schema and choices exclude each other"):
        generate_request("m", "p", json_schema=schema, choices=["yes"])


def test_passages_are_pairs_or_messages_and_none_given_is_not_the_same_as_none_at_all() -> None:
    whole = common_pb2.Passage(id="d#2", text="two", title="Second")
    request = answer_request("m", "q", passages=[("d#1", "one"), whole], cut_passages=True, max_tokens=3)
    assert list(request.passages.passages) == [common_pb2.Passage(id="d#1", text="one"), whole]
    assert (request.overflow, request.decoding.max_tokens) == (pb.OVERFLOW_CUT_PASSAGES, 3)
    assert answer_request("m", "q", passages=[]).WhichOneof("source") == "passages"
    unset = answer_request("m", "q")
    assert (unset.WhichOneof("source"), unset.overflow, unset.HasField("template")) == (None, pb.OVERFLOW_UNSPECIFIED, False)


def test_an_index_is_searched_as_the_settings_say() -> None:
    search = retriever_pb2.SearchSettings(k=3, rerank=True)
    assert answer_request("m", "q", index="papers", search=search).retrieval == pb.Retrieval(index="papers", settings=search)
    assert answer_request("m", "q", index="papers").retrieval == pb.Retrieval(index="papers")
    with pytest.raises(ValueError, match="passages or an index, not both"):
        answer_request("m", "q", index="papers", passages=[])
    with pytest.raises(ValueError, match="give index as well"):
        answer_request("m", "q", search=search)


def test_a_template_is_named_or_given() -> None:
    assert answer_request("m", "q", template="numbered/v1").template == prompts.load("numbered/v1")
    own = common_pb2.PromptTemplate(name="own/v1", user="{{ question }}")
    assert answer_request("m", "q", template=own).template == own
    with pytest.raises(ValueError, match="template 'numberd/v1' does not ship: take one of plain/v1, numbered/v1"):
        answer_request("m", "q", template="numberd/v1")


def test_a_request_of_a_batch_carries_its_id_and_must_not_break_the_stream() -> None:
    generate: Any = generate_request("m", "p")
    answer: Any = answer_request("m", "q")
    assert batch_request(("a", generate), 1000) == pb.BatchGenerateRequest(id="a", generate=generate)
    assert batch_request(("b", answer), 1000) == pb.BatchGenerateRequest(id="b", answer=answer)
    with pytest.raises(ValueError, match=r"request 'c' has \d+ bytes, more than max_message_bytes, 1000"):
        batch_request(("c", generate_request("m", "p" * 1000)), 1000)
