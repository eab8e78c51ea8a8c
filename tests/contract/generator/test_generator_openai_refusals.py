"""What a provider refuses and how it fails: what is learned from it, tried again, or said to the caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai_server import MODEL, WORDS, OpenAIServer, Reply, Seen, answer, ask, engine_of, failure, serving, unknown_parameter

from services.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TunetrialError, Unavailable
from services.generator.openai_engine import OpenAIEngine

TEXT = "".join(WORDS)
KEY, NEW_KEY = "sk-old-0123456789", "sk-new-0123456789"
_LOGPROBS = failure(403, "You are not allowed to request logprobs from this model")
_HOT = failure(
    400, "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported.",
    "unsupported_value", "temperature",
)  # fmt: skip


@pytest_asyncio.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with serving() as server:
        yield server


def without(*names: str) -> Callable[[Seen, int], Reply | None]:
    """A model that has none of these parameters."""
    return lambda seen, _number: next((unknown_parameter(name) for name in names if name in seen.body), None)


async def error_of(engine: OpenAIEngine, *, stream: bool = False, **decoding: Any) -> TunetrialError:
    with pytest.raises(TunetrialError) as error:
        await ask(engine, stream=stream, **decoding)
    return error.value


@pytest.mark.parametrize(
    "refusal",
    [
        unknown_parameter("max_tokens"),
        Reply({"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'max_tokens')}]", "code": 400}, 400),
        Reply({"detail": [{"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]}, 422),
        failure(400, "`max_tokens` is deprecated: use max_completion_tokens"),
    ],
)
async def test_a_model_without_max_tokens_is_asked_for_max_completion_tokens_from_then_on(server: OpenAIServer, refusal: Reply) -> None:
    server.respond = lambda seen, _number: refusal if "max_tokens" in seen.body else None
    engine = engine_of(server)
    _, first = await ask(engine, max_tokens=3)
    _, second = await ask(engine, max_tokens=2, stream=True)
    limits = [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in server.bodies]
    assert limits == [(3, None), (None, 3), (None, 2)]
    assert (first.text, second.text) == ("Ada Lund built", "Ada Lund")


async def test_a_model_that_takes_neither_is_refused_and_nothing_is_learned(server: OpenAIServer) -> None:
    server.respond = without("max_tokens", "max_completion_tokens")
    engine = engine_of(server)
    for _ in range(2):
        error = await error_of(engine, max_tokens=3)
        assert (error.reason, error.metadata["field"]) == ("DECODING_UNSUPPORTED", "decoding.max_tokens")
    assert ["max_tokens" in body for body in server.bodies] == [True, False, True, False]


async def test_more_tokens_than_the_model_can_write_are_not_taken_for_a_parameter_it_lacks(server: OpenAIServer) -> None:
    message = "max_tokens is too large: 5000. This model supports at most 4096 completion tokens, whereas you provided 5000."
    server.respond = lambda _seen, _number: failure(400, message, "invalid_value", "max_tokens")
    error = await error_of(engine_of(server), max_tokens=5000)
    assert (error.reason, error.metadata["field"], len(server.seen)) == ("DECODING_UNSUPPORTED", "decoding.max_tokens", 1)
    assert "at most 4096" in error.message


async def test_a_model_without_seeds_is_asked_without_and_the_answer_has_none(server: OpenAIServer) -> None:
    server.respond = without("seed")
    engine = engine_of(server)
    _, first = await ask(engine, temperature=0.5, seed=7)
    _, second = await ask(engine, temperature=0.5, seed=8)
    assert [body.get("seed") for body in server.bodies] == [7, None, None]
    assert (first.seed, second.seed) == (None, None)


async def test_a_seed_that_is_out_of_range_is_the_caller_s_to_mend(server: OpenAIServer) -> None:
    message = "Invalid 'seed': integer above maximum value."
    server.respond = lambda seen, _number: failure(400, message, "integer_above_max_value", "seed") if seen.body["seed"] > 2**31 else None
    engine = engine_of(server)
    error = await error_of(engine, temperature=0.5, seed=2**40)
    assert (error.reason, error.metadata["field"]) == ("DECODING_UNSUPPORTED", "decoding.seed")
    _, made = await ask(engine, temperature=0.5, seed=7)
    assert (made.seed, server.bodies[-1]["seed"]) == (7, 7)


async def test_what_says_no_more_than_the_default_is_left_out_where_it_is_refused(server: OpenAIServer) -> None:
    server.respond = without("max_tokens", "seed", "top_p", "temperature", "stream_options")
    engine = engine_of(server)
    pieces, made = await ask(engine, temperature=1.0, top_p=1.0, stream=True)
    assert "".join(pieces) == made.text == TEXT
    assert (made.cost_usd, made.completion_tokens) == (None, 0)
    await ask(engine, temperature=1.0)
    assert server.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert len(server.seen) == 7, "the second call sends the right one at once"


async def test_many_calls_at_once_learn_the_same(server: OpenAIServer) -> None:
    server.respond = without("max_tokens", "seed")
    engine = engine_of(server)
    answers = await asyncio.gather(*(ask(engine, temperature=1.0) for _ in range(8)))
    assert {made.text for _, made in answers} == {TEXT}


async def test_of_two_settings_that_exclude_each_other_the_one_nobody_asked_for_goes(server: OpenAIServer) -> None:
    message = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    server.respond = lambda seen, _number: failure(400, message) if "top_p" in seen.body else None
    await ask(engine_of(server), temperature=0.7)
    assert [(body["temperature"], body.get("top_p")) for body in server.bodies] == [(0.7, 1.0), (0.7, None)]
    error = await error_of(engine_of(server), temperature=0.7, top_p=0.5)
    assert error.reason == "DECODING_UNSUPPORTED"


@pytest.mark.parametrize(
    ("decoding", "refusal", "field", "advice"),
    [
        ({}, _HOT, "temperature", "set it to 1"),
        ({"temperature": 0.7}, _HOT, "temperature", "set it to 1"),
        ({"temperature": 1.0, "top_p": 0.5}, unknown_parameter("top_p"), "top_p", "leave it unset"),
        ({"top_log_probabilities": 5}, _LOGPROBS, "top_log_probabilities", "another model"),
        ({"top_log_probabilities": 5}, unknown_parameter("logprobs"), "top_log_probabilities", "another model"),
        ({"top_log_probabilities": 20}, failure(400, "Must be at most 5", None, "top_logprobs"), "top_log_probabilities", "ask for fewer"),
        ({"stop": ("a", "b", "c", "d", "e")}, None, "stop", "fewer stop texts"),
        ({"stop": ("a",)}, failure(400, "'stop' is not supported with this model", "unsupported_parameter", "stop"), "stop", "none"),
    ],
)
async def test_settings_that_the_model_does_not_keep_are_refused_with_what_to_set_instead(
    server: OpenAIServer, decoding: dict[str, Any], refusal: Reply | None, field: str, advice: str
) -> None:
    server.respond = lambda _seen, _number: refusal
    engine = engine_of(server)
    for stream in (False, True):
        error = await error_of(engine, stream=stream, **decoding)
        assert isinstance(error, FailedPrecondition)
        assert (error.reason, error.metadata["field"]) == ("DECODING_UNSUPPORTED", f"decoding.{field}")
        assert advice in error.message
    assert len(server.seen) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("retries", [0, 2])
async def test_a_provider_that_is_busy_for_ever_says_when_to_come_back(server: OpenAIServer, retries: int, stream: bool) -> None:
    headers = {"retry-after-ms": "20"}
    server.respond = lambda _seen, _number: failure(429, "Rate limit reached for gpt-4o", "rate_limit_exceeded", headers=headers)
    error = await error_of(engine_of(server, retries=retries), stream=stream)
    assert isinstance(error, ResourceExhausted)
    assert (error.reason, float(error.metadata["retry_after_s"])) == ("ENGINE_BUSY", 0.1)
    assert len(server.seen) == retries + 1


@pytest.mark.parametrize(
    ("after", "least", "most"), [("7", 7, 7), (formatdate(4102444800, usegmt=True), 1e8, 1e10), ("", 1, 1), ("inf", 1, 1)]
)
async def test_the_time_to_come_back_is_the_provider_s(server: OpenAIServer, after: str, least: float, most: float) -> None:
    server.respond = lambda _seen, _number: failure(429, "slow down", headers={"retry-after": after} if after else None)
    error = await error_of(engine_of(server))
    assert least <= float(error.metadata["retry_after_s"]) <= most


@pytest.mark.parametrize("status", [429, 500, 503, 408])
async def test_what_passes_is_tried_again(server: OpenAIServer, status: int) -> None:
    busy = failure(status, "for now", headers={"retry-after-ms": "1"})
    server.respond = lambda _seen, number: busy if number < 2 else None
    _, made = await ask(engine_of(server, retries=2))
    assert (made.text, len(server.seen)) == (TEXT, 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_quota_that_is_spent_is_not_waited_for(server: OpenAIServer, stream: bool) -> None:
    message = "You exceeded your current quota, please check your plan and billing details."
    server.respond = lambda _seen, _number: failure(429, message, "insufficient_quota")
    error = await error_of(engine_of(server, retries=5), stream=stream)
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, len(server.seen)) == ("ENGINE_QUOTA_SPENT", 1)
    assert "billing" in error.message
    server.respond = lambda _seen, _number: failure(402, "Insufficient Balance")
    assert (await error_of(engine_of(server))).reason == "ENGINE_QUOTA_SPENT"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_filtered_answer_is_refused_in_the_provider_s_words(server: OpenAIServer, stream: bool) -> None:
    words = "The response was filtered due to the prompt triggering our content management policy."
    replies: tuple[Callable[[dict[str, Any]], Reply], ...] = (
        lambda _body: failure(400, words, "content_filter", "prompt"),
        lambda body: answer(body, (), refusal=words),
        lambda body: answer(body, ("Ada",), "content_filter"),
    )
    for reply, said in zip(replies, (words, words, "Ada"), strict=True):
        server.respond = lambda seen, _number, reply=reply: reply(seen.body)  # type: ignore[misc]  # a default of its own for each
        error = await error_of(engine_of(server), stream=stream)
        assert isinstance(error, FailedPrecondition)
        assert (error.reason, error.metadata["why"]) == ("ANSWER_REFUSED", said)


@pytest.mark.parametrize(
    ("refusal", "kind", "reason"),
    [
        (failure(404, "The model `gpt-4o` does not exist", "model_not_found"), FailedPrecondition, "ENGINE_LACKS_MODEL"),
        (failure(403, "Project has no access to model gpt-4o", "model_not_found"), FailedPrecondition, "ENGINE_LACKS_MODEL"),
        (failure(403, "Country not supported", "unsupported_country_region_territory"), FailedPrecondition, "ENGINE_DENIED"),
        (failure(400, "'max_tokens' is too large for a context length of 8", None, "max_tokens"), InvalidArgument, "PROMPT_TOO_LONG"),
        (failure(400, "Input too long, 'seed' unknown", "context_length_exceeded"), InvalidArgument, "PROMPT_TOO_LONG"),
        (failure(400, "Invalid content type", None, "messages"), InvalidArgument, "ENGINE_REFUSED"),
        (Reply(b"<html>welcome</html>", 200, {"content-type": "text/html"}), Unavailable, "ENGINE_UNAVAILABLE"),
        (Reply(b'{"id": ', 200), Unavailable, "ENGINE_UNAVAILABLE"),
        (Reply({"error": {"message": "upstream failed", "code": 502}}), Unavailable, "ENGINE_UNAVAILABLE"),
        (Reply({"model": MODEL, "choices": ["Ada"]}), Unavailable, "ENGINE_UNAVAILABLE"),
        (Reply({"model": MODEL, "choices": [{}]}), Unavailable, "ENGINE_UNAVAILABLE"),
        (Reply([1]), Unavailable, "ENGINE_UNAVAILABLE"),
        (answer({"model": MODEL}, finish="error"), Unavailable, "ENGINE_UNAVAILABLE"),
    ],
)
async def test_each_refusal_has_its_reason(server: OpenAIServer, refusal: Reply, kind: type[TunetrialError], reason: str) -> None:
    server.respond = lambda _seen, _number: refusal
    error = await error_of(engine_of(server))
    assert (type(error), error.reason) == (kind, reason)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("end", "then", "reason"),
    [
        ((), "cut", "ENGINE_UNAVAILABLE"),
        ((), "end", "ENGINE_UNAVAILABLE"),
        (("[DONE]",), "end", "ENGINE_UNAVAILABLE"),
        (('{"id": ',), "end", "ENGINE_UNAVAILABLE"),
        (({"error": {"message": "The server had an error", "type": "server_error"}},), "end", "ENGINE_UNAVAILABLE"),
        (({"error": {"message": "Rate limit", "code": "rate_limit_exceeded"}},), "end", "ENGINE_BUSY"),
        (({"error": {"message": "filtered", "code": "content_filter"}},), "end", "ANSWER_REFUSED"),
    ],
)
async def test_a_broken_stream_is_an_error_and_not_tried_again(server: OpenAIServer, end: tuple[Any, ...], then: str, reason: str) -> None:
    begun = (answer({"model": MODEL, "stream": True}).events or ())[:3]
    server.respond = lambda _seen, _number: Reply(events=(*begun, *end), then=then)
    error = await error_of(engine_of(server, retries=3), stream=True)
    assert (error.reason, len(server.seen)) == (reason, 1)
    assert "broke off" in error.message or then == "cut" or end not in ((), ("[DONE]",))


async def test_nobody_there_is_said_so(server: OpenAIServer) -> None:
    engine = engine_of(server, url="http://127.0.0.1:1/v1")
    assert (await error_of(engine)).reason == "ENGINE_UNAVAILABLE"
    with pytest.raises(Unavailable):
        await engine.replicas()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_file_is_read_anew_when_the_key_is_refused(server: OpenAIServer, tmp_path: Path, stream: bool) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    engine = engine_of(server, api_key_file=file)
    server.keys = {KEY}
    await ask(engine)
    server.keys = {NEW_KEY}
    assert (await error_of(engine, stream=stream)).reason == "ENGINE_DENIED"
    file.write_text(NEW_KEY)
    answers = await asyncio.gather(*(ask(engine, stream=stream) for _ in range(4)))
    assert {made.text for _, made in answers} == {TEXT}
    assert [seen.key for seen in server.seen[:2]] == [KEY, KEY]
    assert server.seen[-1].key == NEW_KEY
    server.keys = {KEY}
    file.unlink()
    assert (await error_of(engine)).reason == "ENGINE_DENIED"


async def test_looking_for_the_provider_takes_a_new_key_too(server: OpenAIServer, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    engine = engine_of(server, api_key_file=file)
    server.keys = {NEW_KEY}
    with pytest.raises(FailedPrecondition) as error:
        await engine.replicas()
    assert error.value.reason == "ENGINE_DENIED"
    file.write_text(NEW_KEY)
    assert await engine.replicas()


async def test_the_key_comes_from_a_variable_and_is_never_shown(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROVIDER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    engine = engine_of(server, api_key_variable="PROVIDER_KEY", retries=1)
    server.keys = set()
    texts = [str(await error_of(engine))]
    server.keys = None
    for refusal in (failure(400, f"bad header Bearer {KEY}"), failure(429, f"key {KEY} is slow", headers={"retry-after-ms": "1"})):
        server.respond = lambda _seen, _number, refusal=refusal: refusal  # type: ignore[misc]  # a default of its own for each
        error = await error_of(engine)
        texts += [str(error), *error.metadata.values()]
    assert all(seen.key == KEY for seen in server.seen)
    captured = capsys.readouterr()
    assert KEY not in "".join([*texts, caplog.text, captured.out, captured.err, repr(engine), repr(engine.base)])


@pytest.mark.parametrize("key", [f"{KEY}\n{NEW_KEY}", "sk-ключ-0123456789", "sk old 0123456789", ""])
def test_a_key_that_no_header_carries_is_refused_at_the_start_and_not_shown(server: OpenAIServer, tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key)
    with pytest.raises(ValueError, match="API key of model") as error:
        engine_of(server, api_key_file=tmp_path / "key")
    assert not key or key[:5] not in str(error.value)
