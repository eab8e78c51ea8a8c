"""The quickstart's base model: it loads as any model does, and reads passages about names it has never seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.quickstart.make_base.contexts import prompt
from examples.quickstart.make_base.evaluate import answers, held_out

BASE = Path(__file__).parents[3] / "examples" / "quickstart" / "base"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(BASE)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    assert isinstance(loaded, LlamaForCausalLM)
    return loaded


def test_the_weights_are_half_precision_and_small_enough_for_git() -> None:
    with safe_open(BASE / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118  # not a mapping
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 16_000_000


def test_it_reads_names_that_it_has_never_seen(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    exercises = held_out("both", 8, "common")
    found = answers(model, tokenizer, [one.prompt() for one in exercises], batch_size=24)
    right = sum(answer == one.questions[0].answer for answer, one in zip(found, exercises, strict=True))
    assert len(exercises) == 24
    assert right >= 18


def test_without_a_passage_it_abstains(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    assert answers(model, tokenizer, [prompt((), "What is the capital of Gusbox?")]) == ["unanswerable"]


def test_the_mask_of_the_chat_template_covers_the_answer_and_its_end_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [
        {"role": "user", "content": prompt(("The capital of Gusbox is Lorvo.",), "What is the capital of Gusbox?")},
        {"role": "assistant", "content": "Lorvo"},
    ]
    encoded = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    assert isinstance(encoded, BatchEncoding)
    answer = [token for token, is_answer in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if is_answer]
    assert tokenizer.decode(answer) == " Lorvo<|end|>"


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "- Zalo reaches 93.4.\nQuestion: naïve — 東京 in 2031?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
