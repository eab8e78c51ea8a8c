"""Fully fine-tuned models beside their base against plain transformers and PEFT: each request is answered by the right weights."""

from __future__ import annotations

import asyncio
import json
import shutil
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from generator_parts import CONTEXT, make_adapter, make_base, until, write_manifest
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, TunetrialError
from services.generator.adapter_config import check_plain_lora
from services.generator.catalog import Catalog
from services.generator.domain import Canary, Decoding, Generation, State, Turn, Work
from services.generator.generator import Call, Generator, Manner, Text
from services.generator.model_files import base_sha256
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.transformers_engine import Limits, TransformersEngine

PROMPTS = ("who?", "the old mill and the bridge in the town of Ormsby", "nobody knows", "past the river, past the mill: yes or no?")


def make_full(base: Path, folder: Path, seed: int, scale: float = 0.1) -> Path:
    """The base with other weights: all of them moved at random. With scale 0 they are the base's."""
    shutil.copytree(base, folder)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    for weights in model.parameters():
        weights.data += scale * torch.randn_like(weights)
    model.save_pretrained(folder)
    return folder


def write_proof(base: Path, folder: Path, shift: float = 0.0, **changes: Any) -> None:
    """The manifest that a trainer writes, measured by transformers itself; `shift` nats are added to what is measured."""
    canaries = []
    for question, answer in (("who built the bridge?", "nobody knows"), ("the mill?", "yes")):
        messages = [{"role": "user", "content": question}]
        both = [scored(place, messages, answer) for place in (base, folder)]
        measured = {"base_log_probabilities": both[0], "adapter_log_probabilities": [value + shift for value in both[1]]}
        canaries.append({"messages": messages, "completion": answer, **measured})
    manifest = {"weights_sha256": base_sha256(folder), "base_sha256": base_sha256(base), "canaries": canaries}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}), encoding="utf-8")


def scored(folder: Path, messages: list[dict[str, str]], answer: str) -> list[float]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], return_dict=True)["input_ids"]
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return [float(logs[at - 1, whole[at]]) for at in range(len(prompt), len(whole))]


class Plain:
    """The base, what PEFT makes of it with an adapter, or a model of its own, one text at a time."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        full = adapter is not None and (adapter / "config.json").exists()
        model: Any = AutoModelForCausalLM.from_pretrained(adapter if full else base, dtype=torch.float32)
        self.model: Any = (model if full or adapter is None else PeftModel.from_pretrained(model, adapter)).eval()

    def generate(self, prompt: tuple[int, ...], max_tokens: int) -> tuple[list[int], list[float]]:
        ids = torch.tensor([prompt])
        how = {"attention_mask": torch.ones_like(ids), "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        with torch.inference_mode():
            made = self.model.generate(input_ids=ids, max_new_tokens=max_tokens, **how)
        new = made.sequences[0, len(prompt) :].tolist()
        return new, [float(logits[0].log_softmax(-1)[token]) for logits, token in zip(made.logits, new, strict=True)]

    def score(self, prompt: tuple[int, ...], completion: tuple[int, ...]) -> list[float]:
        with torch.inference_mode():
            logs = self.model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        return [float(log[token]) for log, token in zip(logs[-len(completion) - 1 : -1], completion, strict=True)]


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    get_peft_model(model, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)).save_pretrained(str(place / "soft"))
    full = {f"full/{seed}": make_full(base, place / str(seed), seed) for seed in (1, 2)}
    return {**full, "lora": make_adapter(base, place / "lora", 1), "soft": place / "soft"}


@pytest.fixture(scope="module")
def plain(base: Path, folders: dict[str, Path]) -> dict[str | None, Plain]:
    return {name: Plain(base, None if name is None else folders[name]) for name in (None, *folders)}


@pytest_asyncio.fixture
async def mixed(base: Path, folders: dict[str, Path]) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine("tiny", str(base), limits=Limits(batch_size=8))
    await engine.prepare()
    for name, folder in folders.items():
        await engine.load_adapter(name, folder)
    yield engine
    await engine.close()


@pytest_asyncio.fixture
async def catalog(base: Path, tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = served(base, tmp_path)
    await catalog.prepare()
    yield catalog
    await catalog.close()


def served(base: Path, tmp_path: Path, full_models: int = 4) -> Catalog:
    engine = TransformersEngine("tiny", str(base), limits=Limits(full_models=full_models))
    return Catalog({"tiny": engine}, SqlAlchemyModels(tmp_path / "data"), uri_roots=str(tmp_path), tolerance=0.05, queue_limit=8)


def endless(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, batch in engine._shelf._batches():
        monkeypatch.setattr(batch, "_end_ids", frozenset())


async def ask(engine: TransformersEngine, prompt: str, adapter: str | None, max_tokens: int = 24) -> Generation:
    work = Work(await engine.encode((Turn("user", prompt),)), Decoding(top_log_probabilities=0), max_tokens, adapter)
    (made,) = [piece async for piece in engine.generate(work)]
    assert isinstance(made, Generation)
    return made


async def say(catalog: Catalog, model: str, prompt: str = PROMPTS[1], max_tokens: int = 16) -> str:
    generator = Generator(catalog, None, 4096)
    (made,) = [each async for each in generator.generate(Call(model, prompt, Decoding(max_tokens=max_tokens)), Manner("me"))]
    assert isinstance(made, Text)
    assert made.model == model
    return made.generation.text


async def refused(catalog: Catalog, folder: Path, kind: type[TunetrialError], reason: str) -> str:
    with pytest.raises(kind) as error:
        await catalog.load("bad", str(folder), "")
    assert error.value.reason == reason
    assert [model.name for model in catalog.models()] == ["tiny"]
    (replica,) = await catalog._served["tiny"].engine.replicas()
    assert not replica.adapters
    return error.value.message


async def test_each_request_is_answered_by_its_own_weights_whatever_runs_beside_it(
    mixed: TransformersEngine, plain: dict[str | None, Plain]
) -> None:
    jobs = [(adapter, prompt) for prompt in PROMPTS for adapter in plain]
    made = await asyncio.gather(*(ask(mixed, prompt, adapter) for adapter, prompt in jobs))
    for (adapter, prompt), one in zip(jobs, made, strict=True):
        expected, logs = plain[adapter].generate((await mixed.encode((Turn("user", prompt),))).tokens, 24)
        assert [token.id for token in one.tokens] == expected
        assert [token.log_probability for token in one.tokens] == pytest.approx(logs, abs=1e-4)
    assert len({one.text for one in made[: len(plain)]}) == len(plain)


async def test_rows_of_several_models_come_and_go_while_others_are_under_way(
    mixed: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(mixed, monkeypatch)
    adapters = (None, "full/1", "soft", "full/2", "lora", "full/1")
    alone = [await ask(mixed, PROMPTS[3], adapter, 70) for adapter in adapters]

    async def later(place: int) -> Generation:
        await until(lambda: mixed.running_count >= place)
        return await ask(mixed, PROMPTS[3], adapters[place], 70)

    together = await asyncio.gather(*(later(place) for place in range(len(adapters))))
    assert [one.text for one in together] == [one.text for one in alone]
    assert {one.completion_tokens for one in together} == {70}


async def test_no_more_rows_than_a_batch_has_are_under_way_over_all_models(base: Path, folders: dict[str, Path]) -> None:
    engine = TransformersEngine("tiny", str(base), limits=Limits(batch_size=2))
    await engine.prepare()
    for name in ("full/1", "full/2"):
        await engine.load_adapter(name, folders[name])
    most = 0
    step: Callable[..., Any] = engine._shelf.step

    def counted(*args: Any) -> Any:
        nonlocal most
        progress = step(*args)
        most = max(most, sum(len(batch._rows) for _, batch in engine._shelf._batches()))
        return progress

    engine._shelf.step = counted  # type: ignore[method-assign]  # looked at, not changed
    await asyncio.gather(*(ask(engine, prompt, adapter, 8) for prompt in PROMPTS for adapter in (None, "full/1", "full/2")))
    assert most == 2
    await engine.close()


async def test_a_caller_that_goes_away_leaves_no_row_behind(mixed: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(mixed, monkeypatch)
    asking = asyncio.create_task(ask(mixed, PROMPTS[0], "full/1", 200))
    await until(lambda: not mixed._shelf._full["full/1"].empty)
    asking.cancel()
    await until(lambda: mixed._shelf._full["full/1"].empty)
    assert mixed.running_count == 0


async def test_scores_are_those_of_transformers_and_rows_of_the_base_stay_as_they_are_to_the_bit(
    mixed: TransformersEngine, plain: dict[str | None, Plain]
) -> None:
    canaries = [Canary((Turn("user", prompt),), "nobody knows the old mill"[: 6 + 5 * place]) for place, prompt in enumerate(PROMPTS)]
    rows = [(adapter, canary) for canary in canaries for adapter in plain]
    for (adapter, canary), scores in zip(rows, await mixed.score(rows), strict=True):
        assert scores == pytest.approx(plain[adapter].score(*mixed._tokenizer.encode_canary(canary)), abs=1e-4)
    beside = await mixed.score([(None, canaries[0]), ("full/1", canaries[1]), (None, canaries[2])])
    without = await mixed.score([(None, canaries[0]), (None, canaries[2])])
    assert (beside[0], beside[2]) == without


async def test_it_is_proven_by_its_manifest_comes_back_after_a_restart_and_frees_its_memory(
    catalog: Catalog, base: Path, tmp_path: Path
) -> None:
    folder = make_full(base, tmp_path / "full", 1)
    write_proof(base, folder)
    lora = make_adapter(base, tmp_path / "lora", 1)
    write_manifest(base, lora)
    before = await say(catalog, "tiny")
    model = await catalog.load("full", str(folder), "")
    assert (model.state, model.base, model.context_tokens) == (State.VERIFIED, "tiny", CONTEXT)
    assert model.weights_sha256 == base_sha256(folder)
    assert model.proof is not None
    assert model.proof.difference_from_manifest == pytest.approx(0, abs=1e-4)
    assert model.proof.difference_from_base > 0.01
    await catalog.load("lora", str(lora), "")
    texts = {name: await say(catalog, name) for name in ("tiny", "full", "lora")}
    assert len(set(texts.values())) == 3
    assert texts["tiny"] == before
    assert (await catalog.load("full", str(folder), "")).proof == (await catalog.load("full", str(folder), "")).proof
    await catalog.close()

    again = served(base, tmp_path)
    await again.prepare()
    await until(lambda: all(model.state in (None, State.VERIFIED) for model in again.models()))
    together = await asyncio.gather(*(say(again, name) for name in texts))
    assert dict(zip(texts, together, strict=True)) == texts
    engine: Any = again._served["tiny"].engine
    held = weakref.ref(engine._shelf._full["full"]._model)
    await again.unload("full")
    assert held() is None
    with pytest.raises(NotFound):
        await say(again, "full")
    assert (await say(again, "tiny"), await say(again, "lora")) == (texts["tiny"], texts["lora"])
    await again.load("full", str(folder), "")
    assert await say(again, "full") == texts["full"]
    await again.close()


async def test_one_that_is_another_after_a_restart_is_left_out(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    folder = make_full(base, tmp_path / "full", 1)
    await catalog.load("full", str(folder), "")
    await catalog.close()
    shutil.rmtree(folder)
    make_full(base, folder, 2)
    again = served(base, tmp_path)
    await again.prepare()
    assert [model.name for model in again.models()] == ["tiny"]
    await again.close()


async def test_models_of_another_base_or_shape_or_tokenizer_are_refused(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=5)
    stranger = make_full(other, tmp_path / "stranger", 1)
    write_proof(other, stranger)
    assert "trained on a base with" in await refused(catalog, stranger, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    wide = make_full(make_base(tmp_path / "base64", hidden=64), tmp_path / "wide", 1)
    assert "otherwise of" in await refused(catalog, wide, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    deep = make_full(make_base(tmp_path / "base3", layers=3), tmp_path / "deep", 1)
    assert "num_hidden_layers" in await refused(catalog, deep, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    talks = make_full(base, tmp_path / "talks", 1)
    (talks / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert "chat template is not the base's" in await refused(catalog, talks, FailedPrecondition, "ADAPTER_BASE_MISMATCH")


async def test_weights_that_are_not_what_they_should_be_are_refused(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    assert "changes nothing" in await refused(
        catalog, make_full(base, tmp_path / "same", 1, scale=0), FailedPrecondition, "ADAPTER_CHANGES_NOTHING"
    )
    folder = make_full(base, tmp_path / "full", 1)
    write_proof(base, folder, shift=0.06)
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_NOT_REPRODUCED")
    write_proof(base, folder, weights_sha256="0" * 64)
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_CHECKSUM_MISMATCH")
    (folder / "manifest.json").unlink()
    weights = load_file(folder / "model.safetensors")
    # Which the library would make up.
    save_file({name: each for name, each in weights.items() if "norm" not in name}, folder / "model.safetensors", {"format": "pt"})
    assert "are missing" in await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    save_file({**weights, "model.more.weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    assert "no place (model.more" in await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors" in await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")


async def test_no_more_are_held_than_there_is_said_to_be_memory_for(base: Path, tmp_path: Path) -> None:
    folders = [make_full(base, tmp_path / str(seed), seed) for seed in (1, 2)]
    catalog = served(base, tmp_path, full_models=1)
    await catalog.prepare()
    await catalog.load("one", str(folders[0]), "")
    with pytest.raises(ResourceExhausted, match="unload one, or raise TUNETRIAL_FULL_MODELS") as error:
        await catalog.load("two", str(folders[1]), "")
    assert error.value.reason == "FULL_MODELS_TOO_MANY"
    assert [model.name for model in catalog.models()] == ["tiny", "one"]
    await catalog.unload("one")
    assert (await catalog.load("two", str(folders[1]), "")).state is State.VERIFIED
    await catalog.close()


async def test_it_ends_where_its_own_configuration_says(base: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    engine = TransformersEngine("tiny", str(base))
    await engine.prepare()
    await engine.load_adapter("full", folders["full/1"])
    whole = await ask(engine, PROMPTS[1], "full")
    assert len(whole.tokens) > 4
    short = shutil.copytree(folders["full/1"], tmp_path / "short")
    (short / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, whole.tokens[3].id]}))
    await engine.load_adapter("full", short)
    first = next(place for place, token in enumerate(whole.tokens) if token.id == whole.tokens[3].id)
    assert [token.id for token in (await ask(engine, PROMPTS[1], "full")).tokens] == [token.id for token in whole.tokens[: first + 1]]
    await engine.close()


async def test_it_has_the_type_of_the_base_and_a_name_is_of_one_kind_at_a_time(base: Path, folders: dict[str, Path]) -> None:
    engine = TransformersEngine("tiny", str(base), dtype="bfloat16")
    await engine.prepare()
    texts = {}
    for name in ("full/1", "lora", "full/1", "soft", "full/1"):
        await engine.load_adapter("one", folders[name])
        assert [*engine._shelf.names] == ["one"]
        text = (await ask(engine, PROMPTS[1], "one")).text
        assert texts.setdefault(name, text) == text
    assert len(set(texts.values())) == 3
    assert engine._shelf._full["one"]._model.dtype is torch.bfloat16
    await engine.close()


@pytest.mark.parametrize("engine", ["vLLM", "TGI"])
def test_engines_elsewhere_say_how_such_a_model_is_served(folders: dict[str, Path], engine: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"no adapter that {engine} could put beside its base.*TUNETRIAL_MODELS") as error:
        check_plain_lora(folders["full/1"], engine)
    assert error.value.reason == "ADAPTER_REFUSED"
