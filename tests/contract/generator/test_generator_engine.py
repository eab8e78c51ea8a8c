"""The engine against plain transformers and PEFT: same texts, same numbers, whatever shares the batch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from generator_parts import ADAPTERS, until
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.common.errors import Unavailable
from services.generator.domain import Decoding, Finish, Generation, Turn, Work
from services.generator.transformers_engine import TransformersEngine

PROMPTS = ("who?", "the old mill and the bridge in the town of Ormsby", "nobody knows", "past the river, past the mill: yes or no?")


class Plain:
    """What `model.generate` says, one prompt at a time."""

    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        for number, folder in enumerate(adapters.values()):
            if number == 0:
                self.model = PeftModel.from_pretrained(self.model, folder, adapter_name="0")
            else:
                self.model.load_adapter(str(folder), str(number))
        self.model.eval()
        self.names = {name: str(number) for number, name in enumerate(adapters)}

    def generate(self, adapter: str | None, prompt: str, max_tokens: int) -> tuple[str, int, float]:
        """Text, tokens, and the first token's log-probability."""
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        if adapter is not None:
            self.model.set_adapter(self.names[adapter])
        with self.model.disable_adapter() if adapter is None else contextlib.nullcontext(), torch.inference_mode():
            made = self.model.generate(**ids, max_new_tokens=max_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True)
        new = made.sequences[0, ids["input_ids"].shape[1] :]
        return self.tokenizer.decode(new, skip_special_tokens=True), len(new), float(made.logits[0][0].log_softmax(-1)[new[0]])


@pytest.fixture(scope="module")
def plain(base: Path, adapters: dict[str, Path]) -> Plain:
    return Plain(base, adapters)


async def ask(engine: TransformersEngine, prompt: str, adapter: str | None = None, max_tokens: int = 24, **decoding: Any) -> Generation:
    *_, generation = await pieces(engine, prompt, adapter, max_tokens, False, **decoding)
    assert isinstance(generation, Generation)
    return generation


async def pieces(
    engine: TransformersEngine, prompt: str, adapter: str | None, max_tokens: int, stream: bool, **decoding: Any
) -> list[str | Generation]:
    encoded = await engine.encode((Turn("user", prompt),))
    work = Work(encoded, Decoding(**decoding), max_tokens, adapter, stream=stream)
    return [piece async for piece in engine.generate(work)]


async def test_base_and_four_adapters_in_mixed_batches_give_what_plain_generate_gives(engine: TransformersEngine, plain: Plain) -> None:
    jobs = [(adapter, prompt) for prompt in PROMPTS for adapter in (*ADAPTERS, None)]
    made = await asyncio.gather(*(ask(engine, prompt, adapter, top_log_probabilities=0) for adapter, prompt in jobs))
    expected = [plain.generate(adapter, prompt, 24) for adapter, prompt in jobs]
    assert [(one.text, one.completion_tokens) for one in made] == [(text, count) for text, count, _ in expected]
    for one, (_, _, first) in zip(made, expected, strict=True):
        assert one.tokens[0].log_probability == pytest.approx(first, abs=1e-4)
    # The adapters do differ, or this would prove nothing.
    assert len({one.text for one in made[:5]}) == 5


async def test_a_seed_gives_the_same_text_alone_and_in_company(engine: TransformersEngine) -> None:
    async def drawn(seed: int) -> Generation:
        return await ask(engine, PROMPTS[1], "cyd", temperature=1.2, top_p=0.95, top_k=50, seed=seed)

    alone = await drawn(7)
    together = await asyncio.gather(*(drawn(seed) for seed in range(8)), *(ask(engine, prompt, "dan") for prompt in PROMPTS))
    assert together[7].text == alone.text
    assert (alone.seed, together[7].seed) == (7, 7)
    assert len({one.text for one in together[:8]}) > 4


async def test_without_a_seed_a_random_one_is_used_and_told_and_greedy_has_none(engine: TransformersEngine) -> None:
    first = await ask(engine, PROMPTS[0], temperature=1.5)
    assert first.seed is not None
    assert (await ask(engine, PROMPTS[0], temperature=1.5, seed=first.seed)).text == first.text
    assert (await ask(engine, PROMPTS[0], seed=5)).seed is None


async def test_top_log_probabilities_are_of_the_raw_distribution_best_first(engine: TransformersEngine) -> None:
    made = await ask(engine, PROMPTS[2], max_tokens=5, temperature=2.0, seed=1, top_log_probabilities=3)
    greedy = await ask(engine, PROMPTS[2], max_tokens=5, top_log_probabilities=3)
    # The first place has the same past in both, and neither temperature nor the draw may show in its numbers.
    drawn, taken = made.tokens[0].top, greedy.tokens[0].top
    assert [rival.id for rival in drawn] == [rival.id for rival in taken]
    assert [rival.log_probability for rival in drawn] == pytest.approx([rival.log_probability for rival in taken], abs=1e-4)
    for token in greedy.tokens:
        values = [rival.log_probability for rival in token.top]
        assert values == sorted(values, reverse=True)
        assert token.top[0].id == token.id
        assert token.log_probability == values[0] <= 0
    whole = await ask(engine, PROMPTS[2], max_tokens=1, top_log_probabilities=20)
    assert 0 < sum(math.exp(rival.log_probability) for rival in whole.tokens[0].top) <= 1.0001


@pytest.mark.parametrize("temperature", [0.0, 1.3])
async def test_pieces_of_a_stream_join_to_the_text_of_the_unary_call(engine: TransformersEngine, temperature: float) -> None:
    settings: dict[str, Any] = {"temperature": temperature, "seed": 3}
    for prompt in PROMPTS:
        *texts, last = await pieces(engine, prompt, "ada.1", 40, True, **settings)
        assert isinstance(last, Generation)
        assert "".join(str(text) for text in texts) == last.text == (await ask(engine, prompt, "ada.1", 40, **settings)).text
        assert len(texts) > 1


async def test_a_stop_text_across_tokens_ends_the_text_before_it(engine: TransformersEngine) -> None:
    free = await ask(engine, PROMPTS[1], "bob/2", top_log_probabilities=0)
    # From the middle of the text, longer than a token.
    stop = free.text[6:12]
    made = await ask(engine, PROMPTS[1], "bob/2", stop=("never there", stop))
    assert made.text == free.text[: free.text.index(stop)]
    assert made.finish is Finish.STOP
    assert made.completion_tokens < free.completion_tokens


async def test_rows_with_limits_and_prompts_of_their_own_share_a_batch(engine: TransformersEngine) -> None:
    sizes = [1, 30, 2, 17, 5, 9, 40, 3]
    made = await asyncio.gather(*(ask(engine, PROMPTS[n % 4] * (1 + n % 3), ADAPTERS[n % 4], size) for n, size in enumerate(sizes)))
    for n, (one, size) in enumerate(zip(made, sizes, strict=True)):
        alone = await ask(engine, PROMPTS[n % 4] * (1 + n % 3), ADAPTERS[n % 4], size)
        assert (one.text, one.completion_tokens, one.finish) == (alone.text, alone.completion_tokens, alone.finish)
        assert one.completion_tokens <= size


async def test_a_caller_that_goes_frees_its_slot_and_leaves_the_others_alone(engine: TransformersEngine) -> None:
    alone = await ask(engine, PROMPTS[3], "dan", 60)
    encoded = await engine.encode((Turn("user", PROMPTS[1]),))
    leaver = engine.generate(Work(encoded, Decoding(), 200, "ada.1", stream=True))
    await anext(leaver)
    stayer = asyncio.create_task(ask(engine, PROMPTS[3], "dan", 60))
    await until(lambda: engine.running_count + engine.waiting_count == 2)
    await leaver.aclose()
    assert engine.running_count + engine.waiting_count == 1
    assert (await stayer).text == alone.text
    assert engine.running_count == 0


async def test_a_cancelled_caller_in_the_queue_leaves_the_queue(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._shelf.batch, "_end_ids", frozenset())
    tasks = [asyncio.create_task(ask(engine, PROMPTS[0], None, 150, temperature=2.0, seed=n)) for n in range(9)]
    await until(lambda: (engine.running_count, engine.waiting_count) == (6, 3))
    tasks[-1].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[-1]
    assert engine.waiting_count <= 2
    await asyncio.gather(*tasks[:-1])


async def test_a_step_that_fails_ends_its_requests_and_not_the_engine(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await ask(engine, PROMPTS[0])

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine._shelf.batch, "step", broken)
        with pytest.raises(Unavailable) as failed:
            await ask(engine, PROMPTS[0])
    assert failed.value.reason == "ENGINE_UNAVAILABLE"
    assert (await ask(engine, PROMPTS[0])).text == before.text


async def test_a_text_prompt_begins_once_however_it_is_written(engine: TransformersEngine) -> None:
    plain, marked = await engine.encode("who?"), await engine.encode("<|begin|>who?")
    assert plain.tokens == marked.tokens
    chat = await engine.encode((Turn("user", "who?"),))
    assert chat.tokens.count(1) == 1


async def test_the_base_is_held_once_whatever_the_number_of_adapters(engine: TransformersEngine, base: Path) -> None:
    alone = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(base).parameters())
    held = {weight.data_ptr(): weight.numel() for name, weight in engine._model.named_parameters() if "lora_" not in name}
    assert sum(held.values()) == alone


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
async def test_a_base_that_lacks_a_file_is_refused_with_its_name_and_what_to_do(base: Path, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / missing).unlink()
    engine = TransformersEngine("tiny", str(folder))
    with pytest.raises(ValueError, match="base model tiny cannot be served") as error:
        await engine.prepare()
    assert str(folder) in str(error.value)
    with pytest.raises(Unavailable):
        await engine.encode("who?")
    await engine.close()
