"""Answers of base and adapters by a real vLLM through the generator's API, against transformers and PEFT alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc

from services.generator.engine_settings import VllmSettings
from services.generator.vllm_engine import VllmEngine
from tests.contract.generator.generator_parts import failure, make_adapter, write_manifest
from tests.contract.generator.generator_server import served
from tests.real.vllm_server import VllmServer

pytestmark = pytest.mark.timeout(2400)

BASE = Path(__file__).parents[2] / "examples" / "quickstart" / "base"
QUESTIONS = ("Lomira was born in", "The report was written by", "Is water wet?")
ROOM = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, Path]:
    """Two that change answers, with the manifests of a trainer; one that changes nothing; one of a rank that is too high."""
    made = {name: make_adapter(BASE, folder / name, seed, scale=2.0) for seed, name in enumerate(("ada", "bob"), 1)}
    for path in made.values():
        write_manifest(BASE, path)
    return made | {"zero": make_adapter(BASE, folder / "zero", 3, scale=0), "wide": make_adapter(BASE, folder / "wide", 4, rank=32)}


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[VllmServer]:
    server = VllmServer(BASE, folder, rank=16)
    server.start()
    yield server
    server.kill()


@pytest_asyncio.fixture
async def stub(server: VllmServer, folder: Path, tmp_path: Path) -> AsyncIterator[generator_pb2_grpc.GeneratorServiceAsyncStub]:
    async with generator([server], folder, tmp_path / "data") as stub:
        yield stub


def generator(servers: list[VllmServer], folder: Path, data: Path) -> Any:
    settings = VllmSettings(engine="vllm", urls=tuple(server.url for server in servers), source=str(BASE))
    return served({"small": VllmEngine("small", settings)}, data, str(folder))


def prompt(question: str, model: str = "small", **decoding: Any) -> pb.GenerateRequest:
    decoding.setdefault("max_tokens", ROOM)
    return pb.GenerateRequest(model=model, prompt=pb.Prompt(text=question), decoding=pb.Decoding(**decoding))


async def load(stub: generator_pb2_grpc.GeneratorServiceAsyncStub, name: str, adapters: dict[str, Path]) -> pb.Model:
    return (await stub.LoadAdapter(pb.LoadAdapterRequest(name=name, uri=str(adapters[name])))).model


async def states(stub: generator_pb2_grpc.GeneratorServiceAsyncStub) -> dict[str, int]:
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    return {model.name: model.state for model in models if model.kind == pb.MODEL_KIND_ADAPTER}


def by_peft(adapter: Path | None, question: str) -> tuple[str, float]:
    """The greedy text and the log-probability of its first token."""
    read: Any = AutoModelForCausalLM.from_pretrained
    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    model = read(BASE, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(model, adapter).eval() if adapter else model
    given = tokenizer(question, return_tensors="pt", return_token_type_ids=False)
    made = model.generate(**given, max_new_tokens=ROOM, do_sample=False, return_dict_in_generate=True, output_logits=True)
    new = made.sequences[0, given["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), float(made.logits[0][0].log_softmax(-1)[new[0]])


async def test_greedy_texts_and_first_log_probabilities_are_those_of_transformers_and_peft(
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub, adapters: dict[str, Path]
) -> None:
    for name in ("ada", "bob"):
        model = await load(stub, name, adapters)
        assert model.state == pb.ADAPTER_STATE_VERIFIED
        assert model.engine == "vllm"
        assert model.proof.difference_from_manifest < 1e-3 < model.proof.difference_from_base
    names = {"small": None, "ada": adapters["ada"], "bob": adapters["bob"]}
    asked = [(name, question) for question in QUESTIONS for name in names]
    answers = await asyncio.gather(*(stub.Generate(prompt(question, name, top_log_probabilities=3)) for name, question in asked))
    for (name, question), answer in zip(asked, answers, strict=True):
        text, first = await asyncio.to_thread(by_peft, names[name], question)
        assert (answer.model, answer.text) == (name, text)
        assert answer.tokens[0].log_probability == pytest.approx(first, abs=1e-3)
        assert answer.tokens[0].top[0].id == answer.tokens[0].id
        assert answer.usage.completion_tokens == len(answer.tokens)
    assert len({answer.text for answer in answers}) > len(QUESTIONS)


async def test_pieces_of_a_stream_join_to_the_text_of_the_unary_call(
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub, adapters: dict[str, Path]
) -> None:
    await load(stub, "ada", adapters)
    for decoding in ({}, {"temperature": 1.5, "seed": 7, "top_p": 0.9, "top_k": 40}, {"stop": ["e"]}):
        request = prompt(QUESTIONS[1], "ada", **decoding)
        whole = await stub.Generate(request)
        parts = [part async for part in stub.StreamGenerate(pb.StreamGenerateRequest(generate=request))]
        assert "".join(part.text for part in parts[:-1]) == parts[-1].done.text == whole.text
        assert parts[-1].done.finish_reason == whole.finish_reason
        assert parts[-1].done.usage.completion_tokens == whole.usage.completion_tokens
        assert whole.seed == decoding.get("seed", 0)
    assert whole.finish_reason == pb.FINISH_REASON_STOP
    assert "e" not in whole.text


async def test_texts_can_be_constrained(stub: generator_pb2_grpc.GeneratorServiceAsyncStub) -> None:
    choice = await stub.Generate(prompt(QUESTIONS[2], constraint=pb.Constraint(choices=pb.Choices(texts=["yes", "no"]))))
    assert choice.text in ("yes", "no")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    made = await stub.Generate(prompt(QUESTIONS[2], max_tokens=60, constraint=pb.Constraint(json_schema=json.dumps(schema))))
    assert made.finish_reason == pb.FINISH_REASON_LENGTH or isinstance(json.loads(made.text)["a"], bool)
    digits = await stub.Generate(prompt(QUESTIONS[2], constraint=pb.Constraint(regex="[0-9]{3}")))
    assert len(digits.text) == 3
    assert digits.text.isdigit()
    for wrong in (pb.Constraint(json_schema="{"), pb.Constraint(choices=pb.Choices(texts=["a", "a"])), pb.Constraint()):
        code, reason, _ = await failure(stub.Generate(prompt("?", constraint=wrong)))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DECODING_INVALID")


async def test_what_is_not_there_or_does_not_work_is_refused_and_leaves_a_consistent_list(
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub, server: VllmServer, adapters: dict[str, Path]
) -> None:
    await load(stub, "bob", adapters)
    for name, expected in (("zero", "ADAPTER_CHANGES_NOTHING"), ("wide", "ADAPTER_REFUSED")):
        code, reason, _ = await failure(load(stub, name, adapters))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, expected)
        code, reason, _ = await failure(stub.Generate(prompt("?", name)))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert name not in server.adapters()
    assert await states(stub) == {"bob": pb.ADAPTER_STATE_VERIFIED}
    await stub.UnloadAdapter(pb.UnloadAdapterRequest(name="bob"))
    assert await states(stub) == {}
    assert "bob" not in server.adapters()
    code, reason, _ = await failure(stub.Generate(prompt("?", "bob")))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_an_engine_killed_in_mid_stream_is_unavailable_and_its_adapters_are_proven_anew(
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub, server: VllmServer, adapters: dict[str, Path]
) -> None:
    await load(stub, "ada", adapters)
    before = await stub.Generate(prompt(QUESTIONS[0], "ada"))
    endless = prompt(QUESTIONS[1], "ada", max_tokens=500, temperature=2.0, seed=1)
    stream = aiter(stub.StreamGenerate(pb.StreamGenerateRequest(generate=endless)))
    assert (await anext(stream)).text
    server.kill()

    async def drain() -> None:
        async for _ in stream:
            pass

    code, reason, _ = await failure(drain())
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
    code, _, _ = await failure(stub.Generate(prompt(QUESTIONS[0], "ada")))
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
    await asyncio.to_thread(server.start)
    # A new process has no adapters: until this one is loaded and proven again, nothing answers in its name.
    async with asyncio.timeout(600):
        while True:
            try:
                after = await stub.Generate(prompt(QUESTIONS[0], "ada"))
                break
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION):
                    raise
                await asyncio.sleep(0.1)
    assert after.text == before.text
    assert "ada" in server.adapters()


async def test_of_two_replicas_all_have_an_adapter_or_none_and_one_alone_goes_on(
    server: VllmServer, folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    other = VllmServer(BASE, folder, rank=8)
    middle = adapters | {"middle": make_adapter(BASE, folder / "middle", 6, rank=16)}
    await asyncio.to_thread(other.start)
    try:
        async with generator([server, other], folder, tmp_path / "data") as stub:
            model = await load(stub, "ada", adapters)
            assert model.proof.replica_count == 2
            expected = (await stub.Generate(prompt(QUESTIONS[0], "ada"))).text
            texts = await asyncio.gather(*(stub.Generate(prompt(QUESTIONS[0], "ada")) for _ in range(16)))
            assert {text.text for text in texts} == {expected}
            # The first would take it, the second cannot: neither has it afterwards.
            code, reason, _ = await failure(load(stub, "middle", middle))
            assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_REFUSED")
            assert server.adapters() == other.adapters() == {"ada"}
            other.kill()
            texts = await asyncio.gather(*(stub.Generate(prompt(QUESTIONS[0], "ada")) for _ in range(8)))
            assert {text.text for text in texts} == {expected}
            code, reason, _ = await failure(load(stub, "bob", adapters))
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
            assert server.adapters() == {"ada"}
            assert await states(stub) == {"ada": pb.ADAPTER_STATE_VERIFIED}
    finally:
        other.kill()
