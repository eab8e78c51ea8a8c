"""A provider's model through the whole service, as an operator configures it and callers see it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from generator_parts import failure, generate, question
from openai_server import MODEL, WORDS, OpenAIServer, answer, serving
from openai_server import failure as http_failure
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc

from services.common.server import start
from services.generator.__main__ import assemble
from services.generator.settings import Settings

KEY = "sk-test-0123456789"
TEXT = "".join(WORDS)


@dataclass
class Running:
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub
    provider: OpenAIServer


@pytest_asyncio.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    async with serving() as provider:
        provider.keys = {KEY}
        (tmp_path / "key").write_text(KEY)
        engine = {
            "engine": "openai",
            "url": provider.url,
            "model": MODEL,
            "api_key_file": str(tmp_path / "key"),
            "retries": 1,
            "usd_per_million_input_tokens": 2.5,
            "usd_per_million_output_tokens": 10,
        }
        monkeypatch.setenv("TUNETRIAL_ENGINES", json.dumps({"gpt4": engine}))
        settings = Settings(port=0, data_dir=tmp_path / "data", uri_roots=str(tmp_path))
        service, prepare = assemble(settings)
        server, port, _ = await start(service, settings)
        await prepare()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Running(generator_pb2_grpc.GeneratorServiceStub(channel), provider)
        await server.stop(0)
        assert service.close is not None
        await service.close()


async def test_a_question_over_given_passages_is_answered_and_costs_what_the_table_says(running: Running) -> None:
    passages = [
        common_pb2.Passage(id="d#1", text="The old mill."),
        common_pb2.Passage(id="d#2", text="Ada Lund built it in 1901."),
    ]
    running.provider.respond = lambda seen, _number: answer(seen.body, ("Ada Lund", " built it", " [2]"))
    for overflow in (pb.OVERFLOW_ERROR, pb.OVERFLOW_CUT_PASSAGES):
        response = await running.stub.Answer(question(model="gpt4", passages=pb.PassageList(passages=passages), overflow=overflow))
        assert response.text == "Ada Lund built it [2]"
        assert (response.model, response.finish_reason) == ("gpt4", pb.FINISH_REASON_END)
        assert [hit.passage.id for hit in response.shown] == ["d#1", "d#2"]
        assert [citation.passage_id for citation in response.citations] == ["d#2"]
        assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (1000, 3)
        assert response.usage.cost_usd == pytest.approx(0.00253)
    prompt = running.provider.bodies[0]["messages"][-1]["content"]
    assert "Ada Lund built it in 1901" in prompt
    assert running.provider.bodies[0] == running.provider.bodies[1]


async def test_a_stream_ends_with_the_whole(running: Running) -> None:
    request = pb.StreamGenerateRequest(generate=generate(model="gpt4", temperature=1, seed=5, top_log_probabilities=1))
    parts = [part async for part in running.stub.StreamGenerate(request)]
    done = parts[-1].done
    assert "".join(part.text for part in parts[:-1]) == done.text == TEXT
    assert (done.seed, [token.id for token in done.tokens], len(parts)) == (5, [-1] * 6, 7)
    assert done.usage.cost_usd == pytest.approx(0.00256)


async def test_of_a_batch_only_the_prompts_that_the_provider_refuses_fail(running: Running) -> None:
    refusal = http_failure(400, "The response was filtered.", "content_filter")
    running.provider.respond = lambda seen, _number: refusal if "evil" in seen.body["messages"][-1]["content"] else None
    texts = {"1": "who built it?", "2": "an evil thing", "3": "and when?"}
    batch = running.stub.BatchGenerate(
        pb.BatchGenerateRequest(id=name, generate=generate(text, model="gpt4")) for name, text in texts.items()
    )
    results = {response.id: response async for response in batch}
    assert {name: result.WhichOneof("result") for name, result in results.items()} == {"1": "generate", "2": "failure", "3": "generate"}
    assert (results["2"].failure.reason, results["2"].failure.metadata["why"]) == ("ANSWER_REFUSED", "The response was filtered.")
    assert {results["1"].generate.text, results["3"].generate.text} == {TEXT}


async def test_what_the_model_does_not_keep_is_said_with_its_field(running: Running) -> None:
    running.provider.respond = lambda _seen, _number: http_failure(403, "You are not allowed to request logprobs from this model")
    code, reason, metadata = await failure(running.stub.Generate(generate(model="gpt4", top_log_probabilities=3)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DECODING_UNSUPPORTED")
    assert metadata["field"] == "decoding.top_log_probabilities"
    before = len(running.provider.seen)
    code, reason, _ = await failure(running.stub.Generate(generate(model="gpt4", top_k=3)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DECODING_UNSUPPORTED")
    assert len(running.provider.seen) == before


async def test_a_provider_that_is_busy_is_said_with_the_time_to_come_back(running: Running) -> None:
    running.provider.respond = lambda _seen, _number: http_failure(429, "Rate limit reached", headers={"retry-after": "200"})
    code, reason, metadata = await failure(running.stub.Generate(generate(model="gpt4")))
    assert (code, reason, float(metadata["retry_after_s"])) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_BUSY", 200)
    assert len(running.provider.seen) == 1, "nobody waits longer than two minutes here"


async def test_it_is_listed_as_a_base_and_takes_no_adapters(running: Running, tmp_path: Path) -> None:
    models = (await running.stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.name, model.kind, model.engine, model.context_tokens) for model in models] == [("gpt4", pb.MODEL_KIND_BASE, "openai", 0)]
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    call = running.stub.LoadAdapter(pb.LoadAdapterRequest(name="ada", uri=str(folder), base="gpt4"))
    code, reason, _ = await failure(call)
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTERS_UNSUPPORTED")
    assert len((await running.stub.ListModels(pb.ListModelsRequest())).models) == 1
