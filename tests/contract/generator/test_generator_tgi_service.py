"""The whole service in front of Text Generation Inference, which answers from the base where it should not: each of these is refused."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from generator_parts import failure, generate, until, write_manifest
from tgi_server import Start, serving
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc

from services.common import server as common
from services.common.settings import ServerSettings
from services.generator.catalog import Catalog
from services.generator.domain import Decoding, Generation, State, Turn, Work
from services.generator.engine_settings import TgiSettings
from services.generator.generator import Generator
from services.generator.servicer import GeneratorServicer
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.tgi_engine import TgiEngine
from services.generator.transformers_engine import TransformersEngine

LISTED = {"ada.1": "ada.1", "bob/2": "bob/2"}
LONG = 3600.0
"""Seconds between two looks at the engines: none within a test."""


@dataclass
class Running:
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub
    tgi: TgiEngine
    catalog: Catalog
    adapters: dict[str, Path]

    async def load(self, name: str) -> pb.Model:
        return (await self.stub.LoadAdapter(pb.LoadAdapterRequest(name=name, uri=str(self.adapters[name])))).model

    async def streamed(self, request: pb.GenerateRequest) -> list[pb.StreamGenerateResponse]:
        return [part async for part in self.stub.StreamGenerate(pb.StreamGenerateRequest(generate=request))]


Open = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Any, ...]]]


@pytest_asyncio.fixture
async def opened(base: Path, adapters: dict[str, Path], engine: TransformersEngine, tmp_path: Path) -> Open:
    """Opens the service in front of servers that are started so."""

    @contextlib.asynccontextmanager
    async def open_(*starts: Start, watch_s: float = LONG, listed: tuple[str, ...] = tuple(LISTED)) -> AsyncIterator[tuple[Any, ...]]:
        async with serving(engine, *starts) as servers:
            urls = tuple(server.url for server in servers)
            tgi = TgiEngine("tiny", TgiSettings(engine="tgi", urls=urls, source=str(base), adapters=listed))
            roots = f"{base.parent.parent}:{tmp_path}"
            catalog = Catalog({"tiny": tgi}, SqlAlchemyModels(tmp_path / "data"), uri_roots=roots, tolerance=0.05, queue_limit=2)
            servicer = GeneratorServicer(Generator(catalog, None, 200), catalog, batch_in_flight=12)
            service = common.Service(
                "tunetrial.generator.v1.GeneratorService",
                lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server),
            )
            server, port, _ = await common.start(service, ServerSettings(port=0))
            await catalog.prepare(watch_s)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub: generator_pb2_grpc.GeneratorServiceAsyncStub = generator_pb2_grpc.GeneratorServiceStub(channel)
                yield Running(stub, tgi, catalog, adapters), *servers
            await server.stop(0)
            await catalog.close()

    return open_


async def expected(engine: TransformersEngine, adapter: str | None) -> str:
    """What the model really gives to the request that `generate` makes."""
    work = Work(await engine.encode((Turn("user", "who built it?"),)), Decoding(), 12, adapter)
    (whole,) = [part async for part in engine.generate(work)]
    assert isinstance(whole, Generation)
    return whole.text


async def test_base_and_proven_adapters_answer_as_themselves(opened: Open, engine: TransformersEngine, base: Path) -> None:
    async with opened(Start(LISTED)) as (running, server):
        write_manifest(base, running.adapters["ada.1"])
        try:
            for name in LISTED:
                model = await running.load(name)
                assert (model.state, model.engine) == (pb.ADAPTER_STATE_VERIFIED, "tgi")
                assert model.proof.difference_from_base > model.proof.base_noise
            for name in ("tiny", *LISTED):
                response = await running.stub.Generate(generate(model=name))
                assert (response.model, response.text) == (name, await expected(engine, None if name == "tiny" else name))
                parts = await running.streamed(generate(model=name))
                assert "".join(part.text for part in parts) == parts[-1].done.text == response.text
        finally:
            (running.adapters["ada.1"] / "manifest.json").unlink()
        # The base's own name is no adapter, and would be taken for one.
        assert [asked.get("adapter_id") for asked in server.generations()] == [None, None, "ada.1", "ada.1", "bob/2", "bob/2"]


async def test_an_adapter_that_was_never_listed_is_not_asked_for(opened: Open) -> None:
    async with opened(Start(LISTED)) as (running, server):
        code, reason, metadata = await failure(running.load("cyd"))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ENGINE_RESTART_NEEDED")
        assert "cyd=" in metadata["start_list"]
        assert (await failure(running.stub.Generate(generate(model="cyd"))))[1] == "MODEL_NOT_FOUND"
        assert not server.received[1:]  # the first asks how it makes tokens


@pytest.mark.parametrize("start", [Start({}), Start({**LISTED, "ada.1": None})], ids=["not known to the server", "known and not applied"])
async def test_an_adapter_that_is_answered_by_the_base_is_not_served(opened: Open, start: Start) -> None:
    async with opened(start) as (running, _):
        code, reason, _ = await failure(running.load("ada.1"))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_CHANGES_NOTHING")
        assert (await failure(running.stub.Generate(generate(model="ada.1"))))[:2] == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_replica_that_does_not_apply_it_keeps_an_adapter_from_all(opened: Open) -> None:
    async with opened(Start(LISTED), Start({"bob/2": "bob/2"})) as (running, _, _):
        assert (await failure(running.load("ada.1")))[1] == "ADAPTER_CHANGES_NOTHING"
        assert (await running.load("bob/2")).proof.replica_count == 2


async def test_a_server_that_gives_no_log_probabilities_of_prompts_is_told_the_option(opened: Open) -> None:
    async with opened(Start(LISTED, prefill_logprobs=False)) as (running, _):
        with pytest.raises(grpc.aio.AioRpcError, match="--enable-prefill-logprobs"):
            await running.load("ada.1")
        assert (await failure(running.load("ada.1")))[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "ENGINE_CANNOT_SCORE")
        assert (await running.stub.Generate(generate())).text


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_an_answer_of_a_server_that_was_started_anew_with_other_adapters_is_thrown_away(
    opened: Open, engine: TransformersEngine, kind: str
) -> None:
    async with opened(Start(LISTED)) as (running, server):
        await running.load("ada.1")
        assert (await running.stub.Generate(generate(model="ada.1"))).text == await expected(engine, "ada.1")
        await server.restart(replace(server.start, adapters={"bob/2": "bob/2"}))
        count = len(server.generations())
        request = generate(model="ada.1")
        # Of the stream, not even a first piece comes.
        stream = pb.StreamGenerateRequest(generate=request)
        refused = await failure(running.stub.Generate(request) if kind == "unary" else running.stub.StreamGenerate(stream).read())
        assert refused[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_NOT_VERIFIED")
        # TGI did answer, without an error: from the base.
        assert [asked["adapter_id"] for asked in server.generations()[count:]] == ["ada.1"]
        assert (await running.stub.Generate(generate())).text == await expected(engine, None)
        await server.restart(replace(server.start, adapters=LISTED))
        assert (await running.stub.VerifyAdapter(pb.VerifyAdapterRequest(name="ada.1"))).model.state == pb.ADAPTER_STATE_VERIFIED
        assert (await running.stub.Generate(generate(model="ada.1"))).text == await expected(engine, "ada.1")


async def test_a_server_that_was_started_anew_with_the_same_adapters_goes_on_answering(opened: Open, engine: TransformersEngine) -> None:
    async with opened(Start(LISTED)) as (running, server):
        await running.load("ada.1")
        await server.restart(server.start)
        scored = sum("decoder_input_details" in body["parameters"] for path, body in server.received if path == "/generate")
        assert (await running.stub.Generate(generate(model="ada.1"))).text == await expected(engine, "ada.1")
        assert sum("decoder_input_details" in body["parameters"] for path, body in server.received if path == "/generate") > scored


async def test_connections_are_kept_so_that_nothing_is_proven_twice(opened: Open) -> None:
    async with opened(Start(LISTED)) as (running, server):
        await running.load("ada.1")
        await running.stub.Generate(generate(model="ada.1"))
        (replica,) = await running.tgi.replicas()
        epoch, peers, count = running.tgi.epoch(replica.identity), set(server.peers), len(server.received)
        for number in range(6):
            await running.streamed(generate(model="ada.1", temperature=1.0, seed=number))
            await running.stub.Generate(generate(model="ada.1"))
        assert (running.tgi.epoch(replica.identity), server.peers) == (epoch, peers)
        assert len(server.received) == count + 12


async def test_another_replica_answers_for_one_that_is_away(opened: Open, engine: TransformersEngine) -> None:
    async with opened(Start(LISTED), Start(LISTED)) as (running, one, two):
        await running.load("ada.1")
        # The proof has opened connections, after which all replicas are looked at once more.
        await running.stub.Generate(generate(model="ada.1"))
        known = len(two.generations())
        await one.stop()
        for model in ("ada.1", "tiny", "ada.1"):
            response = await running.stub.Generate(generate(model=model))
            assert response.text == await expected(engine, None if model == "tiny" else model)
            parts = await running.streamed(generate(model=model))
            assert parts[-1].done.text == response.text
        assert len(two.generations()) == known + 6
        await two.stop()
        code, reason, _ = await failure(running.stub.Generate(generate()))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")


async def test_a_replica_that_comes_back_is_proven_before_it_answers_again(opened: Open, engine: TransformersEngine) -> None:
    async with opened(Start(LISTED), watch_s=0.05) as (running, server):
        await running.load("ada.1")
        await server.stop()
        await until(lambda: not running.tgi._remotes.all[0].identity)
        await server.open(replace(server.start, adapters={}))
        await until(lambda: bool(running.tgi._remotes.all[0].identity))
        await until(lambda: running.catalog.models()[1].state is State.REJECTED)
        assert (await failure(running.stub.Generate(generate(model="ada.1"))))[1] == "ADAPTER_NOT_VERIFIED"
        await server.restart(replace(server.start, adapters=LISTED))
        await running.stub.VerifyAdapter(pb.VerifyAdapterRequest(name="ada.1"))
        assert (await running.stub.Generate(generate(model="ada.1"))).text == await expected(engine, "ada.1")


async def test_a_server_with_another_model_is_not_asked(opened: Open) -> None:
    async with opened(Start(LISTED), Start(LISTED, model_id="/models/other")) as (running, one, two):
        for _ in range(4):
            await running.stub.Generate(generate())
        assert (len(one.generations()), len(two.generations())) in ((4, 0), (0, 4))


async def test_errors_in_a_stream_are_statuses_after_what_was_said(opened: Open) -> None:
    async with opened(Start(LISTED)) as (running, server):
        server.fails = [("generation", 8)]
        parts: list[pb.StreamGenerateResponse] = []

        async def drain() -> None:
            async for part in running.stub.StreamGenerate(pb.StreamGenerateRequest(generate=generate())):
                parts.append(part)

        assert (await failure(drain()))[:2] == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
        assert {part.WhichOneof("part") for part in parts} == {"text"}


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_call_that_ends_ends_the_work_of_the_server_and_a_busy_one_is_said_to_be_busy(opened: Open, kind: str) -> None:
    async with opened(Start(LISTED, max_concurrent_requests=1)) as (running, server):
        server.gate.clear()
        stub = running.stub
        call: Any = stub.Generate(generate()) if kind == "unary" else stub.StreamGenerate(pb.StreamGenerateRequest(generate=generate()))
        await until(lambda: server.running == 1)
        for busy in (stub.Generate(generate()), running.streamed(generate())):
            code, reason, metadata = await failure(busy)
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_BUSY")
            assert float(metadata["retry_after_s"]) > 0
        call.cancel()
        await until(lambda: server.running == 0)
        assert server.left == 1
