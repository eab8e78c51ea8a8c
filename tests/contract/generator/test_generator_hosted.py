"""Models that a provider fine-tuned, as adapters of its base: proven by the name in its answers, which is all that can be known of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from generator_parts import failure, generate
from openai_server import MODEL, WORDS, OpenAIServer, Reply, Seen, answer, serving
from openai_server import failure as http_failure
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc

from services.common.server import start
from services.generator.__main__ import assemble
from services.generator.settings import Settings

if TYPE_CHECKING:
    Stub = generator_pb2_grpc.GeneratorServiceAsyncStub

TUNED = "ft:gpt-4o-2024-08-06:acme:one:abc123"
OTHER = "ft:gpt-4o-2024-08-06:acme:two:def456"
precondition = grpc.StatusCode.FAILED_PRECONDITION


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[OpenAIServer]:
    async with serving() as server:
        yield server


@contextlib.asynccontextmanager
async def generator(folder: Path, provider: OpenAIServer, **more: Any) -> AsyncIterator[Stub]:
    engine = {"engine": "openai", "url": provider.url, "model": MODEL, "retries": 0, "usd_per_million_input_tokens": 1}
    engine |= {"usd_per_million_output_tokens": 1} | more
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_ENGINES", json.dumps({"gpt4": engine}))
        settings = Settings(port=0, data_dir=folder / "data", uri_roots=str(folder))
    service, prepare = assemble(settings)
    server, port, _ = await start(service, settings)
    await prepare()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield generator_pb2_grpc.GeneratorServiceStub(channel)
    await server.stop(0)
    assert service.close is not None
    await service.close()


def load(uri: str = f"openai:{TUNED}", name: str = "one") -> pb.LoadAdapterRequest:
    return pb.LoadAdapterRequest(name=name, uri=uri, base="gpt4")


async def models(stub: Stub) -> dict[str, pb.Model]:
    return {model.name: model for model in (await stub.ListModels(pb.ListModelsRequest())).models}


async def test_a_fine_tuned_model_is_proven_by_the_name_it_answers_in_and_answers_under_it(tmp_path: Path, provider: OpenAIServer) -> None:
    async with generator(tmp_path, provider, tuned_usd_per_million_input_tokens=3, tuned_usd_per_million_output_tokens=3) as stub:
        model = (await stub.LoadAdapter(load())).model
        assert (model.state, model.uri, model.base, model.weights_sha256) == (pb.ADAPTER_STATE_VERIFIED, f"openai:{TUNED}", "gpt4", "")
        # Nothing was measured, and nothing looks as if it had been.
        assert (model.proof.answered_as, model.proof.canary_count, model.proof.replica_count) == (TUNED, 0, 1)
        assert not model.proof.HasField("difference_from_manifest")
        [proof] = provider.bodies
        assert (proof["model"], proof["max_tokens"]) == (TUNED, 1)
        tuned = await stub.Generate(generate(model="one"))
        base = await stub.Generate(generate(model="gpt4"))
        assert [body["model"] for body in provider.bodies[1:]] == [TUNED, MODEL]
        assert (tuned.text, tuned.snapshot, tuned.model) == ("".join(WORDS), TUNED, "one")
        # It has a price of its own.
        assert tuned.usage.cost_usd == pytest.approx(3 * base.usage.cost_usd)
        assert (await stub.LoadAdapter(load())).model == model
        code, reason, _ = await failure(stub.LoadAdapter(load(f"openai:{OTHER}")))
        assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "ADAPTER_NAME_TAKEN")
        await stub.UnloadAdapter(pb.UnloadAdapterRequest(name="one"))
        assert list(await models(stub)) == ["gpt4"]


async def test_without_a_price_of_its_own_its_cost_is_unknown(tmp_path: Path, provider: OpenAIServer) -> None:
    async with generator(tmp_path, provider) as stub:
        await stub.LoadAdapter(load())
        assert not (await stub.Generate(generate(model="one"))).usage.HasField("cost_usd")
        assert (await stub.Generate(generate(model="gpt4"))).usage.HasField("cost_usd")


@pytest.mark.parametrize("name", [MODEL, OTHER, f"{TUNED}:ckpt-step-10", ""])
async def test_a_provider_that_answers_as_another_model_proves_nothing(tmp_path: Path, provider: OpenAIServer, name: str) -> None:
    provider.respond = lambda seen, _number: answer(seen.body, model=name)
    async with generator(tmp_path, provider) as stub:
        code, reason, _ = await failure(stub.LoadAdapter(load()))
        assert (code, reason) == (precondition, "MODEL_DIFFERS")
        assert list(await models(stub)) == ["gpt4"]


async def test_each_answer_in_another_name_is_refused_and_the_next_look_rejects_the_adapter(tmp_path: Path, provider: OpenAIServer) -> None:
    async with generator(tmp_path, provider) as stub:
        await stub.LoadAdapter(load())
        provider.respond = lambda seen, _number: answer(seen.body, model=MODEL) if seen.body["model"] == TUNED else None
        assert (await failure(stub.Generate(generate(model="one"))))[1] == "MODEL_DIFFERS"
        model = (await stub.VerifyAdapter(pb.VerifyAdapterRequest(name="one"))).model
        assert (model.state, model.rejection.reason) == (pb.ADAPTER_STATE_REJECTED, "MODEL_DIFFERS")
        asked = len(provider.seen)
        assert (await failure(stub.Generate(generate(model="one"))))[:2] == (precondition, "ADAPTER_NOT_VERIFIED")
        assert len(provider.seen) == asked
        assert (await stub.Generate(generate(model="gpt4"))).text == "".join(WORDS)
        provider.respond = lambda _seen, _number: None
        assert (await stub.VerifyAdapter(pb.VerifyAdapterRequest(name="one"))).model.state == pb.ADAPTER_STATE_VERIFIED


async def test_it_is_served_and_proven_again_after_a_restart(tmp_path: Path, provider: OpenAIServer) -> None:
    async with generator(tmp_path, provider) as stub:
        await stub.LoadAdapter(load())
        await stub.SetAlias(pb.SetAliasRequest(alias="production", target="one"))
    asked = len(provider.seen)
    async with generator(tmp_path, provider) as stub:
        while (await models(stub))["one"].state != pb.ADAPTER_STATE_VERIFIED:
            pass
        assert (await stub.Generate(generate(model="production"))).snapshot == TUNED
    assert [seen.body["model"] for seen in provider.seen[asked:]] == [TUNED, TUNED]


async def test_what_the_provider_does_not_have_or_is_of_another_base_is_refused(tmp_path: Path, provider: OpenAIServer) -> None:
    def lacking(seen: Seen, _number: int) -> Reply | None:
        return (
            http_failure(404, f"The model {seen.body['model']} does not exist", "model_not_found") if seen.body["model"] == OTHER else None
        )

    provider.respond = lacking
    async with generator(tmp_path, provider) as stub:
        assert (await failure(stub.LoadAdapter(load(f"openai:{OTHER}"))))[:2] == (precondition, "ENGINE_LACKS_MODEL")
        asked = len(provider.seen)
        of_another = "openai:ft:gpt-3.5-turbo-0125:acme:one:abc123"
        assert (await failure(stub.LoadAdapter(load(of_another))))[:2] == (precondition, "ADAPTER_BASE_MISMATCH")
        assert (await failure(stub.LoadAdapter(load("openai:gpt-4o-2024-08-06"))))[:2] == (precondition, "ADAPTER_CHANGES_NOTHING")
        assert (await failure(stub.LoadAdapter(load("openai:"))))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "ADAPTER_UNREADABLE")
        assert len(provider.seen) == asked
