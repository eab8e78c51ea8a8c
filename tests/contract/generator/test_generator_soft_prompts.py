"""Soft prompts on a real engine against PEFT's own forward and generate: same tokens, same numbers, whatever shares the batch."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from generator_parts import CONTEXT, make_adapter, make_base, until, write_manifest
from peft import PeftModel, PromptEncoderConfig, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, TunetrialError
from services.generator.adapter_config import check_plain_lora
from services.generator.catalog import Catalog
from services.generator.domain import Canary, Decoding, Generation, Passage, State, Turn, Work
from services.generator.generator import Answer, Call, Generator, Manner, Overflow, Question, Text
from services.generator.prompting import Template
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.transformers_engine import Limits, TransformersEngine

PROMPTS = ("who?", "the old mill and the bridge in the town of Ormsby", "nobody knows", "past the river, past the mill: yes or no?")
VIRTUAL = {"soft.1": 8, "soft/2": 3}


def make_soft_prompt(base: Path, folder: Path, seed: int, count: int, kind: Any = PromptTuningConfig) -> Path:
    """A random soft prompt."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    get_peft_model(model, kind(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=count)).save_pretrained(str(folder))
    return folder


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Plain:
    """The base, or what PEFT makes of it with an adapter, one text at a time."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model: Any = (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()

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


@pytest.fixture(scope="module", params=["rotary", "learned"])
def any_base(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rotary positions tell only how far apart tokens are, learned ones where they stand."""
    if request.param == "rotary":
        return base
    folder = shutil.copytree(base, tmp_path_factory.mktemp("models") / "learned")
    config = json.loads((base / "config.json").read_text())
    torch.manual_seed(3)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"vocab_size": config["vocab_size"], "n_positions": CONTEXT, "n_embd": 48, "n_layer": 2, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.25)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(any_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    made = {name: make_soft_prompt(any_base, place / str(count), count, count) for name, count in VIRTUAL.items()}
    modules = ["q_proj", "down_proj"] if (json.loads((any_base / "config.json").read_text())["model_type"]) == "llama" else ["c_attn"]
    return {**made, "lora": make_adapter(any_base, place / "lora", 1, modules=modules)}


@pytest.fixture(scope="module")
def plain(any_base: Path, folders: dict[str, Path]) -> dict[str | None, Plain]:
    return {name: Plain(any_base, None if name is None else folders[name]) for name in (None, *folders)}


@pytest_asyncio.fixture
async def mixed(any_base: Path, folders: dict[str, Path]) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine("tiny", str(any_base), limits=Limits(batch_size=6))
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


def served(base: Path, tmp_path: Path) -> Catalog:
    engine = TransformersEngine("tiny", str(base))
    return Catalog({"tiny": engine}, SqlAlchemyModels(tmp_path / "data"), uri_roots=str(tmp_path), tolerance=0.05, queue_limit=8)


async def ask(engine: TransformersEngine, prompt: str, adapter: str | None, max_tokens: int = 24) -> Generation:
    work = Work(await engine.encode((Turn("user", prompt),)), Decoding(top_log_probabilities=0), max_tokens, adapter)
    (made,) = [piece async for piece in engine.generate(work)]
    assert isinstance(made, Generation)
    return made


async def say(catalog: Catalog, model: str, prompt: str = PROMPTS[1], max_tokens: int = 16) -> Generation:
    generator = Generator(catalog, None, 4096)
    (made,) = [each async for each in generator.generate(Call(model, prompt, Decoding(max_tokens=max_tokens)), Manner("me"))]
    assert isinstance(made, Text)
    return made.generation


async def refused(catalog: Catalog, folder: Path, kind: type[TunetrialError], reason: str) -> str:
    with pytest.raises(kind) as error:
        await catalog.load("bad", str(folder), "")
    assert error.value.reason == reason
    assert [model.name for model in catalog.models()] == ["tiny"]
    (replica,) = await catalog._served["tiny"].engine.replicas()
    assert not replica.adapters
    return error.value.message


async def test_base_lora_and_soft_prompts_in_mixed_batches_give_what_peft_gives(
    mixed: TransformersEngine, plain: dict[str | None, Plain]
) -> None:
    jobs = [(adapter, prompt) for prompt in PROMPTS for adapter in plain]
    made = await asyncio.gather(*(ask(mixed, prompt, adapter) for adapter, prompt in jobs))
    for (adapter, prompt), one in zip(jobs, made, strict=True):
        tokens = (await mixed.encode((Turn("user", prompt),))).tokens
        expected, logs = plain[adapter].generate(tokens, 24)
        assert [token.id for token in one.tokens] == expected
        assert [token.log_probability for token in one.tokens] == pytest.approx(logs, abs=1e-4)
        # Virtual tokens are not the caller's.
        assert one.prompt_tokens == len(tokens)
    assert len({one.text for one in made[:4]}) == 4


async def test_a_soft_prompt_joins_rows_that_are_under_way_and_outlives_them(
    mixed: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed._shelf.batch, "_end_ids", frozenset())
    adapters = (None, "soft.1", "lora", "soft/2")
    alone = [await ask(mixed, PROMPTS[3], adapter, 70) for adapter in adapters]

    async def later(place: int) -> Generation:
        await until(lambda: mixed.running_count >= place)
        return await ask(mixed, PROMPTS[3], adapters[place], 70)

    together = await asyncio.gather(*(later(place) for place in range(4)))
    assert [one.text for one in together] == [one.text for one in alone]
    assert {one.completion_tokens for one in together} == {70}


async def test_pieces_of_a_stream_join_to_the_text_of_the_unary_call(mixed: TransformersEngine) -> None:
    work = Work(await mixed.encode((Turn("user", PROMPTS[2]),)), Decoding(), 40, "soft.1", stream=True)
    *pieces, last = [piece async for piece in mixed.generate(work)]
    assert isinstance(last, Generation)
    assert "".join(map(str, pieces)) == last.text == (await ask(mixed, PROMPTS[2], "soft.1", 40)).text


async def test_scores_are_those_of_peft_and_rows_of_the_base_stay_as_they_are_to_the_bit(
    mixed: TransformersEngine, plain: dict[str | None, Plain]
) -> None:
    canaries = [Canary((Turn("user", prompt),), "nobody knows the old mill"[: 6 + 5 * place]) for place, prompt in enumerate(PROMPTS)]
    rows = [(adapter, canary) for canary in canaries for adapter in plain]
    found = await mixed.score(rows)
    for (adapter, canary), scores in zip(rows, found, strict=True):
        prompt, completion = mixed._tokenizer.encode_canary(canary)
        assert scores == pytest.approx(plain[adapter].score(prompt, completion), abs=1e-4)
    with_soft = await mixed.score([(None, canaries[0]), ("soft.1", canaries[1]), (None, canaries[2])])
    without = await mixed.score([(None, canaries[0]), (None, canaries[2])])
    assert (with_soft[0], with_soft[2]) == without


async def test_a_soft_prompt_is_proven_by_its_manifest_and_comes_back_after_a_restart(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    folder = make_soft_prompt(base, tmp_path / "soft", 1, 8)
    write_manifest(base, folder)
    before = await say(catalog, "tiny")
    model = await catalog.load("soft", str(folder), "")
    assert model.state is State.VERIFIED
    assert model.context_tokens == CONTEXT - 8
    assert model.proof is not None
    assert model.proof.difference_from_manifest == pytest.approx(0, abs=1e-4)
    assert model.proof.difference_from_base > 0.01
    made = await say(catalog, "soft")
    assert made.text != before.text
    await catalog.close()

    again = served(base, tmp_path)
    await again.prepare()
    await until(lambda: all(model.state in (None, State.VERIFIED) for model in again.models()))
    assert [model.context_tokens for model in again.models()] == [CONTEXT, CONTEXT - 8]
    assert (await say(again, "soft")).text == made.text
    await again.unload("soft")
    with pytest.raises(NotFound):
        await say(again, "soft")
    assert (await say(again, "tiny")).text == before.text
    assert (await again.load("soft", str(folder), "")).state is State.VERIFIED
    assert (await say(again, "soft")).text == made.text
    await again.close()


async def test_numbers_that_are_not_reproduced_are_refused(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    folder = make_soft_prompt(base, tmp_path / "soft", 1, 8)
    write_manifest(base, folder, shift=0.06)
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_NOT_REPRODUCED")


async def test_soft_prompts_that_do_not_fit_the_base_are_refused(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    wide = make_soft_prompt(make_base(tmp_path / "wide", hidden=64), tmp_path / "other", 1, 8)
    assert "size 64, and the base's 48" in await refused(catalog, wide, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    folder = make_soft_prompt(base, tmp_path / "soft", 1, 8)
    rewrite(folder, task_type="SEQ_2_SEQ_LM")
    assert "task SEQ_2_SEQ_LM" in await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    rewrite(folder, task_type="CAUSAL_LM", num_virtual_tokens=9)
    assert "8 embeddings for 9" in await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    rewrite(folder, num_virtual_tokens=8, modules_to_save=["lm_head"])
    assert "modules_to_save" in await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    long = make_soft_prompt(base, tmp_path / "long", 1, CONTEXT - 1)
    assert "do not fit a context" in await refused(catalog, long, FailedPrecondition, "ADAPTER_BASE_MISMATCH")


async def test_only_plain_prompt_tuning_in_safetensors_is_read(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    encoder = make_soft_prompt(base, tmp_path / "encoder", 1, 4, PromptEncoderConfig)
    assert "P_TUNING" in await refused(catalog, encoder, InvalidArgument, "ADAPTER_UNREADABLE")
    folder = make_soft_prompt(base, tmp_path / "soft", 1, 8)
    rewrite(folder, peft_type="MULTITASK_PROMPT_TUNING")
    assert "MULTITASK" in await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    rewrite(folder, peft_type="PROMPT_TUNING")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, "more": torch.zeros(1)}, folder / "adapter_model.safetensors")
    assert "no place (more" in await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    save_file({"prompt_embeddings": torch.zeros(8, 48, dtype=torch.int32)}, folder / "adapter_model.safetensors")
    await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")


async def test_virtual_tokens_count_in_the_context(catalog: Catalog, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await catalog.load("soft", str(make_soft_prompt(base, tmp_path / "soft", 1, 8)), "")
    engine: Any = catalog._served["tiny"].engine
    monkeypatch.setattr(engine._shelf.batch, "_end_ids", frozenset())

    async def prompt_of(count: int) -> str:
        text = "zq" * CONTEXT
        while len((await engine.encode(text)).tokens) > count:
            text = text[:-1]
        assert len((await engine.encode(text)).tokens) == count
        return text

    last = await say(catalog, "soft", await prompt_of(CONTEXT - 9))
    assert (last.prompt_tokens, last.completion_tokens) == (CONTEXT - 9, 1)
    assert (await say(catalog, "soft", await prompt_of(CONTEXT - 12))).completion_tokens == 4
    full = await prompt_of(CONTEXT - 8)
    assert (await say(catalog, "tiny", full)).completion_tokens == 8
    with pytest.raises(InvalidArgument) as error:
        await say(catalog, "soft", full)
    assert error.value.reason == "PROMPT_TOO_LONG"
    assert (error.value.metadata["prompt_tokens"], error.value.metadata["limit_tokens"]) == (str(CONTEXT - 8), str(CONTEXT - 9))
    assert (await say(catalog, "soft")).completion_tokens == 16


async def test_passages_are_cut_until_virtual_tokens_have_room_too(catalog: Catalog, base: Path, tmp_path: Path) -> None:
    await catalog.load("soft", str(make_soft_prompt(base, tmp_path / "soft", 1, 100)), "")
    generator = Generator(catalog, None, 4096)
    template = Template("t", "{% for p in passages %}{{ p.text }}{% endfor %}{{ question }}", abstentions=("unanswerable",))
    passages = tuple(Passage(str(number), f"{number}" + "zq" * 20) for number in range(8))
    answers = []
    for model in ("tiny", "soft"):
        asked = Question(model, "who?", passages, template, Decoding(max_tokens=20), Overflow.CUT_PASSAGES)
        *_, answer = [each async for each in generator.answer(asked, Manner("me"))]
        assert isinstance(answer, Answer)
        answers.append(answer)
    free, soft = answers
    assert free.generation.prompt_tokens + 20 <= CONTEXT < free.generation.prompt_tokens + 100 + 20
    assert soft.generation.prompt_tokens + 100 + 20 <= CONTEXT
    assert 0 < len(soft.shown) < len(free.shown) < len(passages)


async def test_a_soft_prompt_has_the_type_of_the_base_and_needs_one_adapter_of_its_name(base: Path, tmp_path: Path) -> None:
    soft, lora = make_soft_prompt(base, tmp_path / "soft", 1, 8), make_adapter(base, tmp_path / "lora", 1)
    engine = TransformersEngine("tiny", str(base), dtype="bfloat16")
    await engine.prepare()
    texts = []
    for folder in (soft, lora, soft):
        await engine.load_adapter("one", folder)
        texts.append((await ask(engine, PROMPTS[1], "one")).text)
    assert texts[0] == texts[2] != texts[1]
    assert engine._shelf.soft._prompts["one"].dtype is torch.bfloat16
    assert (await engine.replicas())[0].adapters == {"one"}
    await engine.close()


@pytest.mark.parametrize("engine", ["vLLM", "TGI"])
def test_engines_elsewhere_refuse_soft_prompts_and_name_the_one_that_takes_them(base: Path, tmp_path: Path, engine: str) -> None:
    folder = make_soft_prompt(base, tmp_path / "soft", 1, 8)
    with pytest.raises(
        FailedPrecondition, match=f"served by {engine}: it is of kind PROMPT_TUNING.*serve it by engine transformers"
    ) as error:
        check_plain_lora(folder, engine)
    assert error.value.reason == "ADAPTER_REFUSED"
