"""The real server in process, on a free port, called as others call it; the retriever behind it is a stand-in on the real contract."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from generator_parts import CONTEXT, failure, generate, question, until, write_manifest
from tunetrial import prompts
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc
from tunetrial.retriever.v1 import retriever_pb2, retriever_pb2_grpc

from services.common import server as common
from services.common.errors import NotFound
from services.common.settings import ServerSettings
from services.generator.admission import Admission
from services.generator.catalog import Catalog
from services.generator.generator import Generator
from services.generator.retriever_client import GrpcRetriever
from services.generator.servicer import GeneratorServicer
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.transformers_engine import Limits, TransformersEngine

PASSAGES = [
    common_pb2.Passage(id="d#1", text="The old mill stands by the river.", document="d", title="Mills"),
    common_pb2.Passage(id="d#2", text="The bridge of Ormsby was built by Ada Lund.", document="d", metadata={"year": "1901"}),
    common_pb2.Passage(id="d#3", text="Nobody knows the name of the town."),
]


class StandIn(retriever_pb2_grpc.RetrieverServiceServicer):
    """Knows one index and says what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[retriever_pb2.SearchRequest] = []

    async def Search(self, request: retriever_pb2.SearchRequest, context: Any) -> retriever_pb2.SearchResponse:  # noqa: N802  the contract's name
        self.asked.append(request)
        if request.index == "slow":
            await asyncio.sleep(60)
        if request.index != "mills":
            raise NotFound("INDEX_NOT_FOUND", "no index {name}", name="{" + request.index + "}")
        hits = [
            retriever_pb2.Hit(passage=passage, rank=rank, score=1 / rank, lexical_rank=rank) for rank, passage in enumerate(PASSAGES, 1)
        ]
        return retriever_pb2.SearchResponse(hits=hits)


@dataclass
class Running:
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub
    engine: TransformersEngine
    admission: Admission
    retriever: StandIn


@pytest_asyncio.fixture
async def running(base: Path, adapters: dict[str, Path], tmp_path: Path) -> AsyncIterator[Running]:
    stand_in = StandIn()  # type: ignore[abstract]  # the other calls answer UNIMPLEMENTED
    local = ServerSettings(port=0)
    add = retriever_pb2_grpc.add_RetrieverServiceServicer_to_server
    retriever_server, retriever_port, _ = await common.start(
        common.Service("tunetrial.retriever.v1.RetrieverService", lambda server: add(stand_in, server)), local
    )
    engine = TransformersEngine("tiny", str(base), limits=Limits(batch_size=4))
    roots = f"{base.parent.parent}:{tmp_path}"
    catalog = Catalog({"tiny": engine}, SqlAlchemyModels(tmp_path / "data"), uri_roots=roots, tolerance=0.05, queue_limit=2)
    retriever = GrpcRetriever(f"127.0.0.1:{retriever_port}", None, 2**24)
    servicer = GeneratorServicer(Generator(catalog, retriever, 200), catalog, batch_in_flight=12)
    service = common.Service(
        "tunetrial.generator.v1.GeneratorService",
        lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server),
    )
    server, port, _ = await common.start(service, local)
    await catalog.prepare()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: generator_pb2_grpc.GeneratorServiceAsyncStub = generator_pb2_grpc.GeneratorServiceStub(channel)
        for name in ("ada.1", "bob/2"):
            await stub.LoadAdapter(pb.LoadAdapterRequest(name=name, uri=str(adapters[name])))
        with catalog.use("tiny") as route:
            yield Running(stub, engine, route.admission, stand_in)
    await server.stop(0)
    await retriever_server.stop(0)
    await catalog.close()
    await retriever.close()


async def test_a_generation_says_what_it_cost_and_who_answered(running: Running) -> None:
    response = await running.stub.Generate(generate(model="ada.1", top_log_probabilities=2))
    assert response.model == "ada.1"
    assert response.usage.completion_tokens == len(response.tokens) == 12
    assert response.usage.prompt_tokens > 3
    assert response.usage.latency_ms > 0
    assert response.usage.HasField("cost_usd")
    assert response.usage.cost_usd == 0
    assert response.finish_reason == pb.FINISH_REASON_LENGTH
    assert not response.HasField("seed")
    turns = '[{"content":"who built it?","role":"user"}]'
    assert response.prompt_hash == hashlib.sha256(turns.encode()).hexdigest()
    text = await running.stub.Generate(
        pb.GenerateRequest(model="tiny", prompt=pb.Prompt(text="Ümlaut"), decoding=pb.Decoding(max_tokens=1))
    )
    assert text.prompt_hash == hashlib.sha256("Ümlaut".encode()).hexdigest()


async def test_a_stream_joins_to_the_unary_text_and_ends_with_the_whole(running: Running) -> None:
    unary = await running.stub.Generate(generate(model="bob/2", max_tokens=40))
    parts = [part async for part in running.stub.StreamGenerate(pb.StreamGenerateRequest(generate=generate(model="bob/2", max_tokens=40)))]
    assert [part.WhichOneof("part") for part in parts] == ["text"] * (len(parts) - 1) + ["done"]
    assert "".join(part.text for part in parts[:-1]) == parts[-1].done.text == unary.text
    assert len(parts) > 3


async def test_names_that_are_not_served_are_not_found_in_every_generating_call(running: Running) -> None:
    calls = (
        running.stub.Generate(generate(model="gpt-9")),
        running.stub.Answer(question(model="gpt-9")),
        running.stub.StreamGenerate(pb.StreamGenerateRequest(generate=generate(model="gpt-9"))).read(),
        running.stub.StreamAnswer(pb.StreamAnswerRequest(answer=question(model="gpt-9"))).read(),
        running.stub.UnloadAdapter(pb.UnloadAdapterRequest(name="gpt-9")),
        running.stub.VerifyAdapter(pb.VerifyAdapterRequest(name="gpt-9")),
        running.stub.SetAlias(pb.SetAliasRequest(alias="production", target="gpt-9")),
    )
    for call in calls:
        assert (await failure(call))[:2] == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize(
    ("decoding", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 201}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"top_log_probabilities": 21}, "top_log_probabilities"),
    ],
)
async def test_settings_out_of_range_name_their_field(running: Running, decoding: dict[str, Any], field: str) -> None:
    code, reason, metadata = await failure(running.stub.Generate(generate(**decoding)))
    assert (code, reason, metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "DECODING_INVALID", f"decoding.{field}")


async def test_prompts_that_are_none_are_refused(running: Running) -> None:
    for prompt in (
        pb.Prompt(),
        pb.Prompt(conversation=pb.Conversation()),
        pb.Prompt(conversation=pb.Conversation(messages=[common_pb2.Message(content="no role")])),
        pb.Prompt(conversation=pb.Conversation(messages=[common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, content="x")])),
    ):
        code, _, _ = await failure(running.stub.Generate(pb.GenerateRequest(model="tiny", prompt=prompt)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(running: Running) -> None:
    code, reason, metadata = await failure(running.stub.Generate(generate("x" * 400)))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    assert int(metadata["prompt_tokens"]) > 400
    assert int(metadata["limit_tokens"]) == CONTEXT - 1


async def test_generation_ends_where_the_context_ends(running: Running) -> None:
    response = await running.stub.Generate(generate("x" * 240, max_tokens=200))
    assert response.usage.prompt_tokens + response.usage.completion_tokens == CONTEXT
    assert response.finish_reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
@pytest.mark.parametrize("kind", ["unary", "stream", "batch", "answer"])
async def test_a_call_that_is_cancelled_or_too_late_frees_its_slot(
    running: Running, monkeypatch: pytest.MonkeyPatch, how: str, kind: str
) -> None:
    async def many() -> AsyncIterator[pb.BatchGenerateRequest]:
        # All are sent long before the end: of a call that ends while its client writes, grpc.aio may say INTERNAL.
        for number in range(30):
            yield pb.BatchGenerateRequest(id=str(number), generate=generate(max_tokens=200, temperature=2.0, seed=number))

    timeout = 2.0 if how == "deadline" else None
    request = generate("who?", max_tokens=200, temperature=2.0, seed=4)
    calls: dict[str, Callable[[], Any]] = {
        "unary": lambda: running.stub.Generate(request, timeout=timeout),
        "stream": lambda: running.stub.StreamGenerate(pb.StreamGenerateRequest(generate=request), timeout=timeout),
        "batch": lambda: running.stub.BatchGenerate(many(), timeout=timeout),
        "answer": lambda: running.stub.Answer(question(decoding=request.decoding), timeout=timeout),
    }
    # Steps are slowed down and no token ends the text, so that the call is under way when it ends.
    step = running.engine._shelf.batch.step

    def slowly(*args: Any) -> Any:
        time.sleep(0.02)
        return step(*args)

    monkeypatch.setattr(running.engine._shelf.batch, "step", slowly)
    monkeypatch.setattr(running.engine._shelf.batch, "_end_ids", frozenset())
    call = calls[kind]()
    await until(lambda: running.engine.running_count > 0)
    if how == "cancelled":
        call.cancel()
    else:

        async def drain() -> None:
            if kind in ("stream", "batch"):
                async for _ in call:
                    pass
            else:
                await call

        code, _, _ = await failure(drain())
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.admission.running_count + running.admission.waiting_count == 0)


async def test_callers_past_the_queue_are_refused_at_once_and_a_batch_waits(running: Running) -> None:
    long: dict[str, Any] = {"max_tokens": 120, "temperature": 2.0}
    ids = [str(number) for number in range(40)]

    async def requests() -> AsyncIterator[pb.BatchGenerateRequest]:
        for number in ids:
            yield pb.BatchGenerateRequest(id=number, generate=generate(**long, seed=int(number)))

    async def batch() -> list[pb.BatchGenerateResponse]:
        return [response async for response in running.stub.BatchGenerate(requests())]

    task = asyncio.create_task(batch())
    await until(lambda: running.admission.waiting_count >= 4)
    singles = [asyncio.ensure_future(running.stub.Generate(generate(**long, seed=seed))) for seed in range(3)]
    # Two wait beside the batch, as many as the limit says; which one of three comes last is not known.
    done, _ = await asyncio.wait(singles, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    code, reason, _ = await failure(refused)
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    responses = await task
    assert sorted(response.id for response in responses) == sorted(ids)
    assert {response.WhichOneof("result") for response in responses} == {"generate"}
    for single in singles:
        assert single is refused or (await single).text


async def test_a_batch_answers_each_request_once_and_keeps_failures_apart(running: Running) -> None:
    async def requests() -> AsyncIterator[pb.BatchGenerateRequest]:
        yield pb.BatchGenerateRequest(id="text", generate=generate(model="ada.1"))
        yield pb.BatchGenerateRequest(id="answer", answer=question(passages=pb.PassageList(passages=PASSAGES)))
        yield pb.BatchGenerateRequest(id="unknown", generate=generate(model="gpt-9"))
        yield pb.BatchGenerateRequest(id="long", generate=generate("x" * 400))
        yield pb.BatchGenerateRequest(id="empty")

    responses = {response.id: response async for response in running.stub.BatchGenerate(requests())}
    assert responses["text"].generate.text == (await running.stub.Generate(generate(model="ada.1"))).text
    assert len(responses["answer"].answer.shown) == 3
    reasons = {name: (responses[name].failure.code, responses[name].failure.reason) for name in ("unknown", "long", "empty")}
    assert reasons == {"unknown": (5, "MODEL_NOT_FOUND"), "long": (3, "PROMPT_TOO_LONG"), "empty": (3, "CALL_MISSING")}


async def test_a_batch_reads_no_further_than_its_answers_are_taken(running: Running) -> None:
    sent = 0

    async def requests() -> AsyncIterator[pb.BatchGenerateRequest]:
        nonlocal sent
        for number in range(2000):
            sent = number
            # Answers so large that what the transport holds back is few of them.
            yield pb.BatchGenerateRequest(id=str(number) + "." * 60_000, generate=generate(max_tokens=1))

    call = running.stub.BatchGenerate(requests())
    await call.read()
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(1.0)
    # What the transport holds back in both directions is some 200 of them, and more where it finds the connection to be fast.
    assert sent < 1000
    call.cancel()


async def test_an_answer_shows_its_passages_and_the_hash_of_its_prompt(running: Running) -> None:
    response = await running.stub.Answer(question(passages=pb.PassageList(passages=PASSAGES)))
    assert [hit.passage for hit in response.shown] == PASSAGES
    assert not any(hit.HasField("lexical_rank") for hit in response.shown)
    user = "".join(f"- {passage.text}\n" for passage in PASSAGES) + "Question: who built the bridge?"
    turns = json.dumps([{"role": "user", "content": user}], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert response.prompt_hash == hashlib.sha256(turns.encode()).hexdigest()
    same = await running.stub.Generate(generate(user))
    assert response.text == same.text.strip()
    assert response.prompt_hash == same.prompt_hash


async def test_an_answer_from_an_index_shows_the_hits_with_their_ranks(running: Running) -> None:
    settings = retriever_pb2.SearchSettings(k=3, mode=retriever_pb2.SEARCH_MODE_LEXICAL, filters={"document": "d"})
    response = await running.stub.Answer(question(retrieval=pb.Retrieval(index="mills", settings=settings)))
    assert [(hit.rank, hit.lexical_rank) for hit in response.shown] == [(1, 1), (2, 2), (3, 3)]
    assert running.retriever.asked[-1] == retriever_pb2.SearchRequest(index="mills", query="who built the bridge?", settings=settings)


async def test_the_errors_of_the_retriever_are_passed_on(running: Running) -> None:
    found = await failure(running.stub.Answer(question(retrieval=pb.Retrieval(index="none"))))
    assert found == (grpc.StatusCode.NOT_FOUND, "INDEX_NOT_FOUND", {"name": "{none}"})
    late = await failure(running.stub.Answer(question(retrieval=pb.Retrieval(index="slow")), timeout=0.3))
    assert late[0] is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_streamed_answer_gives_passages_then_text_then_the_whole(running: Running) -> None:
    request = question(passages=pb.PassageList(passages=PASSAGES), decoding=pb.Decoding(max_tokens=30))
    parts = [part async for part in running.stub.StreamAnswer(pb.StreamAnswerRequest(answer=request))]
    kinds = [part.WhichOneof("part") for part in parts]
    assert kinds == ["shown"] + ["text"] * (len(parts) - 2) + ["done"]
    unary = await running.stub.Answer(request)
    assert "".join(part.text for part in parts[1:-1]) == parts[-1].done.text == unary.text
    assert list(parts[0].shown.hits) == list(unary.shown)


async def test_passages_are_cut_from_the_last_on_where_allowed(running: Running) -> None:
    many = pb.PassageList(passages=[common_pb2.Passage(id=str(n), text=f"{n} " + "word " * 8) for n in range(9)])
    code, reason, _ = await failure(running.stub.Answer(question(passages=many)))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    cut = await running.stub.Answer(question(passages=many, overflow=pb.OVERFLOW_CUT_PASSAGES))
    shown = [hit.passage.id for hit in cut.shown]
    assert shown + list(cut.cut_passage_ids) == [str(n) for n in range(9)]
    assert 0 < len(shown) < 9
    assert cut.usage.prompt_tokens + 12 <= CONTEXT
    code, reason, _ = await failure(running.stub.Answer(question("x" * 300, passages=many, overflow=pb.OVERFLOW_CUT_PASSAGES)))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")


async def test_templates_that_do_not_render_are_the_callers_mistake(running: Running) -> None:
    for text in ("{{ question", "{{ nobody }}", "{{ question.__class__.__mro__ }}", "{% for p in passages %}{{ p.author }}{% endfor %}"):
        template = common_pb2.PromptTemplate(name="mine", user=text)
        code, reason, _ = await failure(running.stub.Answer(question(template=template, passages=pb.PassageList(passages=PASSAGES))))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TEMPLATE_INVALID"), text


async def test_every_shipped_template_makes_an_answer(running: Running) -> None:
    for name in prompts.names():
        response = await running.stub.Answer(question("who?", template=prompts.load(name), decoding=pb.Decoding(max_tokens=2)))
        assert response.usage.completion_tokens > 0


async def test_models_come_in_pages_bases_adapters_aliases(running: Running) -> None:
    await running.stub.SetAlias(pb.SetAliasRequest(alias="production", target="ada.1"))
    names, token = [], ""
    while True:
        page = await running.stub.ListModels(pb.ListModelsRequest(page_size=1, page_token=token))
        names += [(model.name, model.kind) for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert names == [
        ("tiny", pb.MODEL_KIND_BASE),
        ("ada.1", pb.MODEL_KIND_ADAPTER),
        ("bob/2", pb.MODEL_KIND_ADAPTER),
        ("production", pb.MODEL_KIND_ALIAS),
    ]
    for wrong in (pb.ListModelsRequest(page_token="x"), pb.ListModelsRequest(page_size=0)):
        assert (await failure(running.stub.ListModels(wrong)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_alias_changes_only_from_what_was_expected_and_keeps_its_history(running: Running) -> None:
    await running.stub.SetAlias(pb.SetAliasRequest(alias="production", target="ada.1", expected_target=""))
    code, reason, metadata = await failure(
        running.stub.SetAlias(pb.SetAliasRequest(alias="production", target="bob/2", expected_target="tiny"))
    )
    assert (code, reason, metadata["now"]) == (grpc.StatusCode.ABORTED, "ALIAS_CHANGED", "ada.1")
    response = await running.stub.SetAlias(pb.SetAliasRequest(alias="production", target="bob/2", expected_target="ada.1"))
    assert [change.target for change in response.history] == ["bob/2", "ada.1"]
    answered = await running.stub.Generate(generate(model="production"))
    assert answered.model == "bob/2"
    assert (await failure(running.stub.UnloadAdapter(pb.UnloadAdapterRequest(name="bob/2"))))[1] == "ADAPTER_HAS_ALIAS"


async def test_a_loaded_adapter_brings_its_proof(running: Running, base: Path, adapter_maker: Callable[..., Path]) -> None:
    folder = adapter_maker()
    write_manifest(base, folder)
    model = (await running.stub.LoadAdapter(pb.LoadAdapterRequest(name="new", uri=str(folder), base="tiny"))).model
    assert (model.state, model.kind, model.base) == (pb.ADAPTER_STATE_VERIFIED, pb.MODEL_KIND_ADAPTER, "tiny")
    assert model.weights_sha256 == hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert model.proof.difference_from_base > model.proof.base_noise
    assert model.proof.difference_from_manifest < model.proof.tolerance
    again = (await running.stub.VerifyAdapter(pb.VerifyAdapterRequest(name="new"))).model
    assert again.state == pb.ADAPTER_STATE_VERIFIED
    assert (await failure(running.stub.LoadAdapter(pb.LoadAdapterRequest(name="x y", uri=str(folder)))))[1] == "ADAPTER_NAME_INVALID"
    assert (await failure(running.stub.LoadAdapter(pb.LoadAdapterRequest(name="x", uri=str(folder), base="other"))))[1] == "MODEL_NOT_FOUND"
