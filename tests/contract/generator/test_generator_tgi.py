"""The engine on Text Generation Inference, over real HTTP: what it asks for, and that it gives what transformers gives."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from generator_parts import until
from tgi_server import Start, TgiServer, serving

from services.common.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted, TunetrialError, Unavailable
from services.generator.domain import Canary, Constraint, ConstraintKind, Decoding, Finish, Generation, Speaker, Turn, Work
from services.generator.engine_settings import TgiSettings
from services.generator.tgi_engine import TgiEngine
from services.generator.transformers_engine import TransformersEngine

LISTED = {"ada.1": "ada.1", "bob/2": "bob/2"}
PROMPTS = ((Turn("user", "who built the bridge?"),), "the river runs past", (Turn("system", "yes"), Turn("user", "Ümlaut\n the mill?")))


@contextlib.asynccontextmanager
async def calling(base: Path, *servers: TgiServer, **settings: Any) -> AsyncIterator[TgiEngine]:
    """An engine in front of these servers, with its adapters."""
    values = {"engine": "tgi", "urls": [server.url for server in servers], "source": str(base), "adapters": list(LISTED), **settings}
    engine = TgiEngine("tiny", TgiSettings.model_validate(values))
    try:
        await engine.prepare()
        yield engine
    finally:
        await engine.close()


@pytest_asyncio.fixture
async def server(engine: TransformersEngine) -> AsyncIterator[TgiServer]:
    async with serving(engine, Start(LISTED)) as (server,):
        yield server


@pytest_asyncio.fixture
async def tgi(server: TgiServer, base: Path) -> AsyncIterator[TgiEngine]:
    async with calling(base, server) as engine:
        yield engine


async def ask(engine: Any, prompt: Any = PROMPTS[0], adapter: str | None = None, *, stream: bool = False, **decoding: Any) -> Any:
    """The whole, and the pieces before it."""
    settings = Decoding(**{"max_tokens": 24, **decoding})
    work = Work(await engine.encode(prompt), settings, settings.max_tokens or 1, adapter, stream=stream)
    async with contextlib.aclosing(engine.generate(work)) as parts:
        *pieces, whole = [part async for part in parts if not isinstance(part, Speaker)]
    assert isinstance(whole, Generation)
    return whole, pieces


async def refused(call: Any, kind: type[TunetrialError]) -> TunetrialError:
    with pytest.raises(kind) as raised:
        await call
    return raised.value


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("adapter", [None, *LISTED])
async def test_greedy_texts_and_log_probabilities_are_those_of_transformers(
    tgi: TgiEngine, engine: TransformersEngine, adapter: str | None, stream: bool
) -> None:
    for prompt in PROMPTS:
        found, pieces = await ask(tgi, prompt, adapter, stream=stream, top_log_probabilities=3)
        expected, _ = await ask(engine, prompt, adapter, top_log_probabilities=3)
        assert (found.text, found.finish, found.prompt_tokens) == (expected.text, expected.finish, expected.prompt_tokens)
        assert "".join(pieces) == (found.text if stream else "")
        assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]
        for token, same in zip(found.tokens, expected.tokens, strict=True):
            assert token.log_probability == pytest.approx(same.log_probability, abs=1e-4)
            assert token.text == same.text
            assert [top.id for top in token.top] == [top.id for top in same.top]
        assert found.completion_tokens == len(found.tokens) == 24 or found.finish is Finish.END
        assert (found.seed, found.cost_usd) == (None, None)


async def test_scores_are_those_of_transformers_for_base_and_adapters(tgi: TgiEngine, engine: TransformersEngine) -> None:
    canaries = (Canary(PROMPTS[0], "nobody knows"), Canary("the river", " runs past the old mill"))
    rows = [(adapter, canary) for adapter in (None, *LISTED) for canary in canaries]
    (replica,) = await tgi.replicas()
    for row, scores in zip(rows, await tgi.score(rows, replica.identity), strict=True):
        (expected,) = await engine.score([row])
        assert scores == pytest.approx(expected, abs=1e-4), row


async def test_it_says_what_it_serves_and_what_it_found(tgi: TgiEngine, server: TgiServer, base: Path) -> None:
    (replica,) = await tgi.replicas()
    assert replica.adapters == frozenset(LISTED)
    assert (tgi.base.name, tgi.base.uri, tgi.base.engine) == ("tiny", str(base), "tgi")
    assert (tgi.base.context_tokens, tgi.capacity) == (server.start.max_total_tokens, 64)


async def test_a_greedy_request_says_so_and_sends_no_setting_of_sampling(tgi: TgiEngine, server: TgiServer) -> None:
    one, _ = await ask(tgi, temperature=0.0, top_p=0.5, top_k=3, seed=4)
    two, _ = await ask(tgi)
    assert one.text == two.text
    for asked in server.generations():
        assert asked["do_sample"] is False
        assert not {"temperature", "top_p", "top_k", "seed", "adapter_id", "presence_penalty", "frequency_penalty", "truncate"} & set(asked)


async def test_a_sampling_request_always_has_a_seed_that_gives_the_same_again(tgi: TgiEngine, server: TgiServer) -> None:
    one, _ = await ask(tgi, temperature=2.0, max_tokens=40)
    two, _ = await ask(tgi, temperature=2.0, max_tokens=40)
    again, _ = await ask(tgi, temperature=2.0, max_tokens=40, seed=one.seed, stream=True)
    assert one.text == again.text != two.text
    assert [asked["seed"] for asked in server.generations()] == [one.seed, two.seed, one.seed]
    assert all(asked["do_sample"] is True for asked in server.generations())


async def test_top_p_of_one_is_not_sent_and_less_is(tgi: TgiEngine, server: TgiServer) -> None:
    for top_p in (1.0, 0.9):
        await ask(tgi, temperature=1.0, seed=1, top_p=top_p, top_k=7)
    assert [(asked.get("top_p"), asked["top_k"]) for asked in server.generations()] == [(None, 7), (0.9, 7)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_text_is_no_part_of_the_answer_even_where_tgi_sees_none(
    tgi: TgiEngine, engine: TransformersEngine, server: TgiServer, stream: bool
) -> None:
    async def stops(seed: int) -> tuple[str, str] | None:
        """Two stop texts in the answer of this seed: one over two tokens, one that is the first character of a token."""
        whole, _ = await ask(engine, temperature=1.0, seed=seed, top_log_probabilities=0)
        texts = [token.text for token in whole.tokens if not token.text.startswith("<|")]
        over = next((one + two for one, two in itertools.pairwise(texts[2:]) if (one + two).isascii()), None)
        long = [text for text in texts if text.isascii() and len(text) > 1]
        within = next((text for text in long if whole.text.find(text) == whole.text.find(text[0])), None)
        return (over, within[0]) if over and within else None

    for seed in range(100):
        if (chosen := await stops(seed)) is not None:
            break
    assert chosen is not None
    for stop in chosen:
        how: dict[str, Any] = {"stop": (stop,), "temperature": 1.0, "seed": seed, "top_log_probabilities": 0}
        found, pieces = await ask(tgi, stream=stream, **how)
        expected, _ = await ask(engine, **how)
        assert (found.text, found.finish, found.completion_tokens) == (expected.text, Finish.STOP, expected.completion_tokens)
        assert len(found.tokens) == found.completion_tokens
        assert stop not in found.text
        assert "".join(pieces) == (found.text if stream else "")
    assert [asked["stop"] for asked in server.generations()] == [[stop] for stop in chosen]


async def test_a_turn_that_ends_with_the_last_token_is_ended_and_not_cut(tgi: TgiEngine, engine: TransformersEngine) -> None:
    for seed in range(200):
        found, _ = await ask(engine, temperature=2.0, seed=seed, max_tokens=40)
        if found.finish is Finish.END:
            same, _ = await ask(tgi, temperature=2.0, seed=seed, max_tokens=found.completion_tokens)
            longer, _ = await ask(tgi, temperature=2.0, seed=seed, max_tokens=found.completion_tokens + 1)
            assert (same.text, same.finish) == (longer.text, longer.finish) == (found.text, Finish.END)
            return
    pytest.fail("no answer ended by itself")


async def test_constraints_go_as_grammars_word_for_word(tgi: TgiEngine, server: TgiServer) -> None:
    schema = '{"properties": {"a": {"enum": ["x", null]}}, "default": null}'
    for kind, value in ((ConstraintKind.JSON_SCHEMA, schema), (ConstraintKind.REGEX, "a+")):
        await ask(tgi, constraint=Constraint(kind, (value,)))
    assert [asked["grammar"] for asked in server.generations()] == [{"type": "json", "value": schema}, {"type": "regex", "value": "a+"}]


@pytest.mark.parametrize(
    ("decoding", "field", "sent"),
    [
        ({"stop": tuple("abcde")}, "stop", False),
        ({"constraint": Constraint(ConstraintKind.CHOICE, ("yes", "no"))}, "constraint", False),
        ({"constraint": Constraint(ConstraintKind.JSON_SCHEMA, ('{"type": "array"}',))}, "constraint", True),
        ({"top_log_probabilities": 6}, "top_log_probabilities", True),
        ({"top_log_probabilities": 1, "temperature": 0.5}, "top_log_probabilities", False),
        ({"top_log_probabilities": 1, "temperature": 1.0, "top_p": 0.5}, "top_log_probabilities", False),
        ({"top_log_probabilities": 1, "constraint": Constraint(ConstraintKind.REGEX, ("a",))}, "top_log_probabilities", False),
        ({"temperature": 1.0, "seed": -1}, "seed", False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_settings_that_tgi_cannot_keep_are_refused_by_name(
    tgi: TgiEngine, server: TgiServer, decoding: dict[str, Any], field: str, sent: bool, stream: bool
) -> None:
    error = await refused(ask(tgi, stream=stream, **decoding), FailedPrecondition)
    assert (error.reason, error.metadata["field"]) == ("DECODING_UNSUPPORTED", f"decoding.{field}")
    assert bool(server.generations()) is sent


async def test_more_log_probabilities_are_given_where_the_server_allows_them(engine: TransformersEngine, base: Path) -> None:
    async with serving(engine, Start(LISTED, max_top_n_tokens=20)) as (server,), calling(base, server) as tgi:
        found, _ = await ask(tgi, top_log_probabilities=20)
        assert {len(token.top) for token in found.tokens} == {20}


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_that_do_not_come_are_an_error(engine: TransformersEngine, base: Path, stream: bool) -> None:
    async with serving(engine, Start(LISTED, top_tokens=False)) as (server,), calling(base, server) as tgi:
        error = await refused(ask(tgi, stream=stream, top_log_probabilities=2), FailedPrecondition)
        assert (error.reason, error.metadata["field"]) == ("DECODING_UNSUPPORTED", "decoding.top_log_probabilities")


async def test_only_adapters_of_the_start_list_are_taken_and_others_need_a_restart(
    tgi: TgiEngine, server: TgiServer, adapters: dict[str, Path]
) -> None:
    await tgi.load_adapter("ada.1", adapters["ada.1"])
    error = await refused(tgi.load_adapter("cyd", adapters["cyd"]), FailedPrecondition)
    assert error.reason == "ENGINE_RESTART_NEEDED"
    assert f"LORA_ADAPTERS=ada.1=<folder of ada.1>,bob/2=<folder of bob/2>,cyd={adapters['cyd']}" in error.message
    assert "TUNETRIAL_ENGINES" in error.message
    (replica,) = await tgi.replicas()
    assert replica.adapters == frozenset(LISTED)


async def test_a_rollout_brings_an_adapter_and_it_is_listed_then(server: TgiServer, base: Path, adapters: dict[str, Path]) -> None:
    class Rollout:
        """Starts the server anew, as a platform does."""

        async def add(self, base: str, listed: Any, adapter: str, path: str) -> None:
            assert path == str(adapters[adapter])
            await server.restart(replace(server.start, adapters={name: name for name in (*listed, adapter)}))

        async def remove(self, adapter: str) -> None:
            await server.restart(replace(server.start, adapters=LISTED))

        async def close(self) -> None: ...

    settings = TgiSettings(engine="tgi", urls=(server.url,), source=str(base), adapters=tuple(LISTED))
    tgi = TgiEngine("tiny", settings, Rollout())
    await tgi.prepare()
    await tgi.load_adapter("cyd", adapters["cyd"])
    assert set(server.start.adapters) == {*LISTED, "cyd"}
    assert (await tgi.replicas())[0].adapters == {*LISTED, "cyd"}
    # What was there from the start stays.
    for name in ("cyd", "bob/2"):
        await tgi.unload_adapter(name)
    assert set(server.start.adapters) == (await tgi.replicas())[0].adapters == set(LISTED)
    await tgi.close()


async def test_an_adapter_that_tgi_would_apply_in_part_is_refused_before_anything_is_started(
    tgi: TgiEngine, server: TgiServer, adapter_maker: Callable[..., Path]
) -> None:
    for name, modules in (("head", ["q_proj", "lm_head"]), ("pattern", r".*q_proj")):
        error = await refused(tgi.load_adapter("ada.1", adapter_maker(name, modules=modules)), FailedPrecondition)
        assert (error.reason, error.metadata["engine"]) == ("ADAPTER_REFUSED", "TGI")
    assert not server.generations()


async def test_the_key_is_sent_and_never_another_one(
    engine: TransformersEngine, base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machine")
    monkeypatch.setenv("TGI_KEY", "Secret")
    async with serving(engine, Start(LISTED, api_key="Secret"), Start(LISTED)) as (closed, open_):
        async with calling(base, closed, api_key_variable="TGI_KEY") as tgi:
            await ask(tgi)
        async with calling(base, open_) as tgi:
            await ask(tgi)
            await ask(tgi, stream=True)
        assert {headers.get("authorization") for headers in closed.headers} == {"Bearer Secret"}
        assert {headers.get("authorization") for headers in open_.headers} == {None}
        async with calling(base, closed) as tgi:
            assert (await refused(tgi.replicas(), FailedPrecondition)).reason == "ENGINE_DENIED"


async def test_one_who_has_much_to_do_says_when_to_come_back(engine: TransformersEngine, base: Path) -> None:
    async with serving(engine, Start(LISTED, max_concurrent_requests=1)) as (server,), calling(base, server) as tgi:
        server.gate.clear()
        first = asyncio.create_task(ask(tgi))
        await until(lambda: server.running == 1)
        for stream in (False, True):
            error = await refused(ask(tgi, stream=stream), ResourceExhausted)
            assert (error.reason, float(error.metadata["retry_after_s"]) > 0) == ("ENGINE_BUSY", True)
        server.gate.set()
        assert (await first)[0].text


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_too_long_is_said_to_be_too_long(engine: TransformersEngine, base: Path, stream: bool) -> None:
    async with serving(engine, Start(LISTED, max_total_tokens=40)) as (server,), calling(base, server) as tgi:
        assert (await refused(ask(tgi, "x" * 90, stream=stream), InvalidArgument)).reason == "PROMPT_TOO_LONG"
        huge = "x" * 2_000_001
        work = Work(await tgi.encode(huge), Decoding(), 1, stream=stream)

        async def run() -> None:
            async for _ in tgi.generate(work):
                pass

        assert (await refused(run(), InvalidArgument)).reason == "PROMPT_TOO_LONG"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_to_a_prompt_that_was_cut_is_thrown_away(engine: TransformersEngine, base: Path, stream: bool) -> None:
    async with serving(engine, Start(LISTED, truncates=True)) as (server,), calling(base, server) as tgi:
        assert (await refused(ask(tgi, stream=stream), Internal)).reason == "PROMPT_DIFFERS"


async def test_a_caller_who_goes_ends_the_work(tgi: TgiEngine, server: TgiServer) -> None:
    server.gate.clear()
    for stream in (False, True):
        task = asyncio.create_task(ask(tgi, stream=stream, temperature=2.0, seed=1))
        await until(lambda: server.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.running == 0)
        assert server.left == 1 + stream
    server.gate.set()
    assert (await ask(tgi))[0].text


async def test_an_error_in_a_stream_is_a_status_and_what_came_before_stays(tgi: TgiEngine, server: TgiServer) -> None:
    server.fails = [("generation", 12)]
    work = Work(await tgi.encode(PROMPTS[0]), Decoding(), 24, stream=True)
    pieces: list[Any] = []

    async def run() -> None:
        async for piece in tgi.generate(work):
            pieces.append(piece)

    error = await refused(run(), Unavailable)
    assert (error.reason, "Request failed during generation" in error.message) == ("ENGINE_UNAVAILABLE", True)
    assert isinstance(pieces[0], Speaker)
    assert pieces[1:]
    assert all(isinstance(piece, str) for piece in pieces[1:])
    for kind in ("generation", "incomplete_generation"):
        for stream in (False, True):
            server.fails = [(kind, 0)]
            assert (await refused(ask(tgi, stream=stream), Unavailable)).reason == "ENGINE_UNAVAILABLE"


async def test_text_with_unusual_line_breaks_comes_whole(engine: TransformersEngine, base: Path) -> None:
    async with serving(engine, Start(LISTED, adds="\u2028\u0085\u2029")) as (server,), calling(base, server) as tgi:
        one, _ = await ask(tgi, stream=True)
        two, _ = await ask(tgi)
        assert one.text == two.text
