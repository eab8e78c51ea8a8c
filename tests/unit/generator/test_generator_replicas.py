"""Adapters on engines whose processes come and go: who answers, and who is proven first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
import pytest_asyncio
from generator_pretender import Pretender, catalog_of

from services.common.errors import FailedPrecondition, TunetrialError, Unavailable
from services.generator.catalog import Catalog
from services.generator.domain import Decoding, Replica, State
from services.generator.generator import Call, Generator, Manner, Text
from services.generator.replicas import Broken, NotReached, Remote, Remotes, Slow, away

WATCH_S = 0.01


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def engine() -> Pretender:
    engine = Pretender("some ", "text")
    engine.running = (Replica("one", frozenset()), Replica("two", frozenset()))
    return engine


@pytest_asyncio.fixture
async def catalog(engine: Pretender, folder: Path) -> AsyncIterator[Catalog]:
    catalog = catalog_of(engine, str(folder))
    await catalog.prepare(WATCH_S)
    await catalog.load("mine", str(folder), "")
    yield catalog
    await catalog.close()


async def ask(catalog: Catalog, name: str = "mine", *, stream: bool = False) -> list[object]:
    call = Call(name, "hello", Decoding())
    return [piece async for piece in Generator(catalog, None, 10).generate(call, Manner("me", stream=stream))]


async def looks(engine: Pretender, count: int = 3) -> None:
    """Returns after the watch has looked so many times."""
    seen = engine.looks
    async with asyncio.timeout(10):
        while engine.looks < seen + count:  # noqa: ASYNC110  the watch has no event
            await asyncio.sleep(WATCH_S / 2)


async def at_work(engine: Pretender) -> None:
    """Returns when a request has come to the engine."""
    async with asyncio.timeout(10):
        while not engine.work:  # noqa: ASYNC110  the engine has no event for it
            await asyncio.sleep(0)


async def reason(catalog: Catalog, kind: type[TunetrialError], name: str = "mine") -> str:
    """Why the model does not answer."""
    with pytest.raises(kind) as refused:
        await ask(catalog, name)
    return refused.value.reason


def state(catalog: Catalog) -> State | None:
    return next(model.state for model in catalog.models() if model.name == "mine")


async def test_a_replica_that_is_too_busy_to_be_looked_at_is_there_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("services.generator.replicas.time.monotonic", lambda: clock)
    remotes = Remotes("small", {"a": None, "b": None})
    state: dict[str, Replica | Unavailable] = {"a": Replica("a 1", frozenset()), "b": away("small", "no answer", Slow)}

    async def at(remote: Remote[None]) -> Replica:
        seen = state[remote.url]
        if isinstance(seen, Replica):
            return seen
        raise seen

    # One that was never seen is not there, however it failed.
    assert await remotes.look(at) == (Replica("a 1", frozenset()),)
    clock, state["a"] = 29.0, away("small", "no answer", Slow)
    assert await remotes.look(at) == (Replica("a 1", frozenset()),)
    clock = 31.0
    with pytest.raises(Slow):
        await remotes.look(at)
    state["a"] = Replica("a 2", frozenset())
    assert (await remotes.look(at))[0].identity == "a 2"
    # A connection that fails says at once that it is away.
    state["a"] = away("small", "refused", NotReached)
    with pytest.raises(NotReached):
        await remotes.look(at)
    with pytest.raises(Unavailable):
        remotes.named("a 2")


async def test_an_engine_that_was_away_says_nothing_about_an_adapter(
    catalog: Catalog, engine: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "score", AsyncMock(side_effect=away("small", "it did not answer in time", Slow)))
    engine.running = (Replica("three", frozenset()),)
    await looks(engine)
    assert state(catalog) is State.LOADED
    assert await reason(catalog, Unavailable) == "ADAPTER_NOT_READY"


async def test_an_adapter_is_proven_on_every_replica_and_may_be_asked_of_each(catalog: Catalog, engine: Pretender) -> None:
    assert set(engine.scored) == {"one", "two"}
    await ask(catalog)
    assert engine.work[-1].among == {"one", "two"}
    (model,) = [model for model in catalog.models() if model.name == "mine"]
    assert model.proof is not None
    assert model.proof.replica_count == 2


async def test_a_replica_that_is_gone_is_not_asked_and_a_new_one_only_after_its_own_proof(catalog: Catalog, engine: Pretender) -> None:
    engine.running = (Replica("two", frozenset({"mine"})),)
    await looks(engine)
    await ask(catalog)
    assert engine.work[-1].among == {"two"}
    engine.scored.clear()
    engine.base_only = {"three"}
    engine.running = (Replica("two", frozenset({"mine"})), Replica("three", frozenset()))
    await looks(engine)
    await ask(catalog)
    assert engine.work[-1].among == {"two"}
    assert set(engine.scored) == {"three"}
    # What was refused is not tried again and again; another process is.
    engine.scored.clear()
    await looks(engine)
    assert engine.scored == []
    engine.base_only = set()
    engine.running = (Replica("two", frozenset({"mine"})), Replica("four", frozenset()))
    await looks(engine)
    await ask(catalog)
    assert engine.work[-1].among == {"two", "four"}
    assert "mine" in engine.running[1].adapters


async def test_an_engine_that_was_away_answers_after_a_new_proof(catalog: Catalog, engine: Pretender) -> None:
    engine.running = ()
    await looks(engine)
    with pytest.raises(Unavailable):
        await ask(catalog)
    engine.base_only = {"one again"}
    engine.running = (Replica("one again", frozenset()),)
    await looks(engine)
    assert state(catalog) is State.REJECTED
    with pytest.raises(FailedPrecondition) as refused:
        await ask(catalog)
    assert refused.value.reason == "ADAPTER_NOT_VERIFIED"
    assert "changes nothing" in refused.value.message
    engine.base_only = set()
    await catalog.verify("mine")
    assert await ask(catalog)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_came_from_an_engine_that_became_another_is_thrown_away(catalog: Catalog, engine: Pretender, stream: bool) -> None:
    engine.hold = asyncio.Event()
    asked = asyncio.create_task(ask(catalog, stream=stream))
    await at_work(engine)
    engine.restarts += 1
    engine.base_only = {"one", "two"}
    engine.hold.set()
    with pytest.raises(FailedPrecondition) as refused:
        await asked
    assert refused.value.reason == "ADAPTER_NOT_VERIFIED"


async def test_an_engine_that_became_another_and_still_has_the_adapter_goes_on(catalog: Catalog, engine: Pretender) -> None:
    engine.scored.clear()
    engine.restarts += 1
    texts = await asyncio.gather(*(ask(catalog) for _ in range(5)))
    assert all(isinstance(pieces[-1], Text) for pieces in texts)
    assert engine.scored == ["one", "two"]


async def test_of_two_new_replicas_one_that_refuses_does_not_keep_the_other_from_answering(catalog: Catalog, engine: Pretender) -> None:
    engine.base_only = {"three"}
    engine.running = (Replica("three", frozenset()), Replica("four", frozenset()))
    await looks(engine)
    await ask(catalog)
    assert engine.work[-1].among == {"four"}
    # Asked for, the proof is tried everywhere again, and says what speaks against it.
    model = await catalog.verify("mine")
    assert model.state is State.VERIFIED
    engine.base_only = set()
    model = await catalog.verify("mine")
    assert model.proof is not None
    assert model.proof.replica_count == 2


async def test_an_adapter_goes_on_answering_while_it_is_being_proven_again(
    catalog: Catalog, engine: Pretender, monkeypatch: pytest.MonkeyPatch
) -> None:
    proving = asyncio.Event()

    async def never(*_: object) -> tuple[tuple[float, ...], ...]:
        proving.set()
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", never)
        verifying = asyncio.create_task(catalog.verify("mine"))
        await proving.wait()
        assert isinstance((await ask(catalog))[-1], Text)
        await catalog.set_alias("production", "mine", "")
        verifying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await verifying
    assert isinstance((await ask(catalog))[-1], Text)


async def test_a_replica_that_goes_away_in_mid_request_takes_its_answer_along(catalog: Catalog, engine: Pretender) -> None:
    engine.hold = asyncio.Event()
    asked = asyncio.create_task(ask(catalog))
    await at_work(engine)
    engine.running = (Replica("two", frozenset({"mine"})),)
    engine.hold.set()
    with pytest.raises(Unavailable) as lost:
        await asked
    assert lost.value.reason == "ADAPTER_NOT_READY"
    assert isinstance((await ask(catalog))[-1], Text)
    assert engine.work[-1].among == {"two"}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_one_replica_says_is_its_own_when_another_one_goes(catalog: Catalog, engine: Pretender, stream: bool) -> None:
    for speaker, answers in (("two", True), ("one", False)):
        engine.running = (Replica("one", frozenset({"mine"})), Replica("two", frozenset({"mine"})))
        await looks(engine)
        engine.hold, engine.speaker, engine.work = asyncio.Event(), speaker, []
        asked = asyncio.create_task(ask(catalog, stream=stream))
        await at_work(engine)
        engine.running = (Replica("two", frozenset({"mine"})),)
        await looks(engine)
        engine.hold.set()
        if answers:
            assert isinstance((await asked)[-1], Text)
        else:
            with pytest.raises(Unavailable):
                await asked


async def test_the_base_of_an_engine_that_mixes_its_models_does_not_answer_until_it_is_another_process(
    catalog: Catalog, engine: Pretender
) -> None:
    assert await ask(catalog, name="base")
    engine.mixing = {"two"}
    assert (await catalog.verify("mine")).state is State.VERIFIED  # by the other one
    assert await reason(catalog, FailedPrecondition, "base") == "ENGINE_MIXES_MODELS"
    await ask(catalog)
    assert engine.work[-1].among == {"one"}
    # Out of sight for a moment, it is the same process.
    for running, answers in ((("one",), True), (("one", "two"), False), (("one", "two again"), True)):
        engine.running = tuple(Replica(name, frozenset({"mine"})) for name in running)
        await looks(engine)
        if answers:
            assert await ask(catalog, name="base")
        else:
            assert await reason(catalog, FailedPrecondition, "base") == "ENGINE_MIXES_MODELS"


async def test_a_replica_that_lost_the_adapter_gets_it_again(catalog: Catalog, engine: Pretender) -> None:
    engine.running = (Replica("one", frozenset()), Replica("two", frozenset({"mine"})))
    await looks(engine)
    assert "mine" in engine.running[0].adapters
    await ask(catalog)
    assert engine.work[-1].among == {"one", "two"}


async def test_a_service_is_ready_while_one_engine_is(catalog: Catalog, engine: Pretender) -> None:
    await catalog.ready()
    engine.running = ()
    with pytest.raises(Unavailable):
        await catalog.ready()


@pytest.mark.parametrize(
    ("first", "second", "tries"),
    [(Broken, None, 2), (Broken, Broken, 2), (NotReached, None, 1), (Slow, None, 1)],
)
async def test_a_single_replica_gets_a_request_again_whose_connection_broke(
    first: type[Unavailable], second: type[Unavailable] | None, tries: int
) -> None:
    remotes = Remotes("small", {"a": None})
    await remotes.look(lambda _: asyncio.sleep(0, Replica("a 1", frozenset())))
    fails = [first, second]
    asked = []

    class Silent:
        begun = False

    async def pieces(remote: Remote[None]) -> AsyncGenerator[str, None]:
        asked.append(remote.url)
        if (kind := fails.pop(0)) is not None:
            raise away("small", "trouble", kind)
        yield "text"

    async def run() -> list[object]:
        return [part async for part in remotes.ask(frozenset(), lambda remote: (Silent(), pieces(remote)))]

    if tries == 2 and second is None:
        assert "text" in await run()
    else:
        with pytest.raises(Unavailable):
            await run()
    assert len(asked) == tries
