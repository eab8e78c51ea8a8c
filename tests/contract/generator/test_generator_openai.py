"""A provider's model as a base: what is asked, what is answered, what it costs. Real client, real HTTP."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai_server import MODEL, QUESTION, SNAPSHOT, WORDS, OpenAIServer, Reply, answer, ask, engine_of, failure, happened, serving

from services.common.errors import FailedPrecondition, Internal, InvalidArgument, Unavailable
from services.generator.domain import Constraint, ConstraintKind, Decoding, Finish, Turn, Work
from services.generator.openai_answer import same_model

TEXT = "".join(WORDS)
PRICES = {"usd_per_million_input_tokens": 2.5, "usd_per_million_output_tokens": 10.0}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serving() as server:
        yield server


async def test_all_unset_is_greedy_and_says_so(server: OpenAIServer) -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "who?"), Turn("assistant", "Whom?"), Turn("user", "the builder"))
    pieces, made = await ask(engine_of(server), turns)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert server.bodies == [{"model": MODEL, "messages": messages, "max_tokens": 256, "temperature": 0.0}]
    assert server.seen[0].path == "/v1/chat/completions"
    assert pieces == []
    assert (made.text, made.finish, made.seed, made.tokens) == (TEXT, Finish.END, None, ())
    assert (made.prompt_tokens, made.completion_tokens) == (1000, 6)
    assert made.latency_ms > 0


async def test_every_setting_arrives_as_it_was_given(server: OpenAIServer) -> None:
    schema = {"type": "object", "properties": {"builder": {"type": "string"}}, "required": ["builder"], "additionalProperties": False}
    server.respond = lambda seen, _number: answer(seen.body, ('{"builder":', ' "Ada"}'))
    _, made = await ask(
        engine_of(server),
        max_tokens=20,
        temperature=0.7,
        top_p=0.9,
        seed=2**40,
        stop=("\n", "END"),
        top_log_probabilities=2,
        constraint=Constraint(ConstraintKind.JSON_SCHEMA, (json.dumps(schema),)),
    )
    sent = server.bodies[0]
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["seed"], sent["stop"]) == (20, 0.7, 0.9, 2**40, ["\n", "END"])
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)
    assert sent["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert made.seed == 2**40
    assert json.loads(made.text) == {"builder": "Ada"}


async def test_sampling_without_a_seed_draws_one_and_returns_it(server: OpenAIServer) -> None:
    engine = engine_of(server)
    seeds = [(await ask(engine, temperature=1.0))[1].seed for _ in range(3)]
    assert [body["seed"] for body in server.bodies] == seeds
    assert len(set(seeds)) == 3
    assert all(body["top_p"] == 1.0 for body in server.bodies), "servers have defaults of their own"


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_come_with_their_texts_and_rivals(server: OpenAIServer, stream: bool) -> None:
    _, made = await ask(engine_of(server), top_log_probabilities=2, stream=stream)
    assert "".join(token.text for token in made.tokens) == TEXT
    assert {token.id for token in made.tokens} == {-1}
    assert {token.log_probability for token in made.tokens} == {math.log(0.5)}
    first = made.tokens[0].top
    assert [(rival.id, rival.text, rival.log_probability) for rival in first] == [(-1, "Ada", math.log(0.5)), (-1, "Ada1", math.log(0.25))]
    _, made = await ask(engine_of(server), top_log_probabilities=0, stream=stream)
    assert [token.top for token in made.tokens] == [()] * 6


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_that_are_asked_for_and_do_not_come_are_an_error(server: OpenAIServer, stream: bool) -> None:
    server.respond = lambda seen, _number: answer(seen.body | {"logprobs": None, "top_logprobs": None})
    with pytest.raises(FailedPrecondition) as error:
        await ask(engine_of(server), top_log_probabilities=2, stream=stream)
    assert (error.value.reason, error.value.metadata["field"]) == ("DECODING_UNSUPPORTED", "decoding.top_log_probabilities")


@pytest.mark.parametrize("stream", [False, True])
async def test_bare_text_goes_to_the_legacy_route(server: OpenAIServer, stream: bool) -> None:
    pieces, made = await ask(
        engine_of(server), "The mill was built by", max_tokens=4, temperature=0.5, top_log_probabilities=1, stream=stream
    )
    assert server.seen[0].path == "/v1/completions"
    assert (server.bodies[0]["prompt"], server.bodies[0]["max_tokens"], server.bodies[0]["logprobs"]) == ("The mill was built by", 4, 1)
    assert (made.text, made.finish, made.completion_tokens) == ("Ada Lund built it", Finish.LENGTH, 4)
    assert [(token.text, token.top[0].text) for token in made.tokens] == [(word, word) for word in WORDS[:4]]
    assert "".join(pieces) == (made.text if stream else "")


@pytest.mark.parametrize(
    "refusal",
    [
        failure(404, "This is a chat model and not supported in the v1/completions endpoint.", None, "model"),
        failure(400, "The completions endpoint is not available."),
        Reply({"detail": "Not Found"}, 404),
        Reply(b"Method not allowed", 405, {"content-type": "text/plain"}),
    ],
)
async def test_bare_text_is_refused_where_the_provider_takes_conversations_only(server: OpenAIServer, refusal: Reply) -> None:
    server.respond = lambda _seen, _number: refusal
    with pytest.raises(FailedPrecondition, match=r"prompt\.conversation") as error:
        await ask(engine_of(server), "The mill")
    assert error.value.reason == "TEXT_UNSUPPORTED"
    server.respond = lambda _seen, _number: failure(404, "The model `gpt-4o` does not exist", "model_not_found")
    with pytest.raises(FailedPrecondition) as error:
        await ask(engine_of(server), "The mill")
    assert error.value.reason == "ENGINE_LACKS_MODEL"


async def test_a_stream_joins_to_the_whole_and_counts_its_tokens(server: OpenAIServer) -> None:
    pieces, made = await ask(engine_of(server, **PRICES), stream=True)
    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    assert tuple(pieces) == WORDS
    assert (made.text, made.prompt_tokens, made.completion_tokens) == (TEXT, 1000, 6)
    assert made.cost_usd == pytest.approx(0.00256)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_ends_early_says_why(server: OpenAIServer, stream: bool) -> None:
    engine = engine_of(server)
    _, cut = await ask(engine, max_tokens=2, stream=stream)
    assert (cut.text, cut.finish) == ("Ada Lund", Finish.LENGTH)
    _, stopped = await ask(engine, stop=(" it",), stream=stream)
    assert (stopped.text, stopped.finish) == ("Ada Lund built", Finish.END), "OpenAI does not say which it was"
    server.respond = lambda seen, _number: _stopped_as_vllm_says(seen.body)
    _, stopped = await ask(engine, stop=(" it",), stream=stream)
    assert (stopped.text, stopped.finish) == ("Ada Lund built", Finish.STOP)


def _stopped_as_vllm_says(body: dict[str, Any]) -> Reply:
    reply = answer(body)
    last = reply.body if reply.events is None else next(event for event in reply.events if event["choices"][0]["finish_reason"])
    last["choices"][0]["stop_reason"] = " it"
    return reply


async def test_an_empty_answer_is_an_answer(server: OpenAIServer) -> None:
    server.respond = lambda seen, _number: answer(seen.body, (), "length")
    _, made = await ask(engine_of(server), top_log_probabilities=1)
    assert (made.text, made.finish, made.tokens) == ("", Finish.LENGTH, ())


@pytest.mark.parametrize(
    ("settings", "usage", "cost"),
    [
        ({}, {}, None),
        ({"usd_per_million_input_tokens": 2.5}, {}, None),
        (PRICES, {}, 1000 * 2.5e-6 + 6 * 10e-6),
        (PRICES, {"prompt_tokens_details": {"cached_tokens": 600}}, 1000 * 2.5e-6 + 6 * 10e-6),
        (
            PRICES | {"usd_per_million_cached_input_tokens": 1.25},
            {"prompt_tokens_details": {"cached_tokens": 600}},
            400 * 2.5e-6 + 600 * 1.25e-6 + 6 * 10e-6,
        ),
        (PRICES, {"completion_tokens": 1006, "completion_tokens_details": {"reasoning_tokens": 1000}}, 1000 * 2.5e-6 + 1006 * 10e-6),
        ({"usd_per_million_input_tokens": 0, "usd_per_million_output_tokens": 0}, {}, 0),
    ],
)
async def test_costs_follow_the_price_table(
    server: OpenAIServer, settings: dict[str, float], usage: dict[str, Any], cost: float | None
) -> None:
    counted = {"prompt_tokens": 1000, "completion_tokens": 6, "total_tokens": 1006}
    server.respond = lambda seen, _number: answer(seen.body, usage=counted | usage)
    _, made = await ask(engine_of(server, **settings))
    assert made.cost_usd == (None if cost is None else pytest.approx(cost, abs=1e-12))


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_count_of_tokens_the_cost_is_unknown(server: OpenAIServer, stream: bool) -> None:
    def uncounted(body: dict[str, Any]) -> Reply:
        return answer(body | {"stream_options": None}) if stream else answer(body, usage=None)

    server.respond = lambda seen, _number: uncounted(seen.body)
    _, made = await ask(engine_of(server, **PRICES), stream=stream)
    assert (made.text, made.prompt_tokens, made.completion_tokens, made.cost_usd) == (TEXT, 0, 0, None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "llama-3-8b", ""])
async def test_an_answer_of_another_model_is_no_answer(server: OpenAIServer, model: str, stream: bool) -> None:
    server.respond = lambda seen, _number: answer(seen.body, model=model)
    with pytest.raises(Internal) as error:
        await ask(engine_of(server), stream=stream)
    assert error.value.reason == "MODEL_DIFFERS"


async def test_a_deployment_answers_as_the_settings_say(server: OpenAIServer) -> None:
    server.respond = lambda seen, _number: answer(seen.body, model=SNAPSHOT)
    _, made = await ask(engine_of(server, model="our-deployment", answers_as=MODEL))
    assert made.text == TEXT
    assert server.bodies[0]["model"] == "our-deployment"
    with pytest.raises(Internal, match="answers_as"):
        await ask(engine_of(server, model="our-deployment"))


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-4", "gpt-4", True),
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-4", "gpt-4o-2024-08-06", False),
        ("gpt-4", "gpt-4-turbo-2024-04-09", False),
        ("gpt-4-0613", "gpt-4-0314", False),
        ("gpt-4o-2024-08-06", "gpt-4o", False),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", True),
        ("openai/gpt-4o", "azure/gpt-4o", False),
        ("mistral-large-latest", "mistral-large-2411", True),
        ("claude-x", "claude-x-20241022", True),
        ("Qwen/Qwen2.5-7B", "qwen/qwen2.5-7b", True),
        ("qwen2.5", "qwen2.5:latest", True),
        ("qwen", "qwen-7777", False),
    ],
)
def test_a_dated_snapshot_is_the_model_that_was_asked_for(asked: str, answered: str, same: bool) -> None:
    assert same_model(asked, answered) is same


@pytest.mark.parametrize(
    "decoding",
    [
        {"top_k": 5},
        {"constraint": Constraint(ConstraintKind.REGEX, ("a+",))},
        {"constraint": Constraint(ConstraintKind.CHOICE, ("yes", "no"))},
    ],
)
async def test_what_the_protocol_cannot_say_is_refused_before_it_costs(server: OpenAIServer, decoding: dict[str, Any]) -> None:
    with pytest.raises(FailedPrecondition) as error:
        await ask(engine_of(server), **decoding)
    assert (error.value.reason, error.value.metadata["field"]) == ("DECODING_UNSUPPORTED", f"decoding.{next(iter(decoding))}")
    with pytest.raises(FailedPrecondition):
        await ask(engine_of(server), "bare", constraint=Constraint(ConstraintKind.JSON_SCHEMA, ("{}",)))
    with pytest.raises(InvalidArgument):
        await ask(engine_of(server), "")
    assert server.seen == []


async def test_a_provider_that_takes_a_schema_and_ignores_it_is_found_out(server: OpenAIServer) -> None:
    schema = Constraint(ConstraintKind.JSON_SCHEMA, ("{}",))
    with pytest.raises(FailedPrecondition, match="no JSON"):
        await ask(engine_of(server), constraint=schema)
    _, cut = await ask(engine_of(server), constraint=schema, max_tokens=2)
    assert cut.finish is Finish.LENGTH


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_closes_the_connection(server: OpenAIServer, stream: bool) -> None:
    begun = answer({"model": MODEL, "stream": True}).events or ()
    server.respond = lambda _seen, _number: Reply(events=begun[:2], then="silence") if stream else Reply(then="silence")
    task = asyncio.create_task(ask(engine_of(server), stream=stream))
    assert await happened(server.arrived)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await happened(server.hung_up)


async def test_a_caller_who_leaves_a_stream_closes_the_connection(server: OpenAIServer) -> None:
    begun = answer({"model": MODEL, "stream": True}).events or ()
    server.respond = lambda _seen, _number: Reply(events=begun[:2], then="silence")
    engine = engine_of(server)
    work = Work(await engine.encode(QUESTION), Decoding(), 16, stream=True)
    async with aclosing(engine.generate(work)) as pieces:
        assert await anext(pieces) == "Ada"
    assert await happened(server.hung_up)


@pytest.mark.parametrize(
    "models",
    [None, Reply({"error": "no such route"}, 404), failure(403, "Missing scopes: model.read"), Reply(b"<html>", 200), failure(429, "slow")],
)
async def test_the_provider_is_there_without_an_answer_being_paid_for(server: OpenAIServer, models: Reply | None) -> None:
    server.models = models or server.models
    engine = engine_of(server)
    await engine.prepare()
    assert [replica.adapters for replica in await engine.replicas()] == [frozenset()]
    await asyncio.gather(*(engine.replicas() for _ in range(20)))
    assert (server.looks, server.seen) == (1, [])
    assert (engine.base.name, engine.base.uri, engine.base.engine) == ("baseline", f"{server.url}/{MODEL}", "openai")
    assert (engine.capacity, engine.epoch("")) == (64, 0)


async def test_a_provider_that_is_away_is_looked_for_each_time_and_found_again(server: OpenAIServer) -> None:
    usual, server.models = server.models, failure(503, "The server is overloaded")
    engine = engine_of(server)
    await engine.prepare()
    with pytest.raises(Unavailable, match="overloaded"):
        await engine.replicas()
    server.models = usual
    assert await engine.replicas()
    server.respond = lambda _seen, _number: failure(500, "The server had an error")
    with pytest.raises(Unavailable):
        await ask(engine)
    assert await engine.replicas()
    assert server.looks == 4, "an answer that failed is a reason to look again"


async def test_adapters_with_weights_are_not_for_a_provider(server: OpenAIServer) -> None:
    engine = engine_of(server)
    for call in (engine.load_adapter("ada", Path()), engine.score([], server.url)):
        with pytest.raises(FailedPrecondition) as error:
            await call
        assert error.value.reason == "ADAPTERS_UNSUPPORTED"
