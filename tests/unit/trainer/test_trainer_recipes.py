"""Preference optimisation and prompt tuning on a tiny random base: what is learnt, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.common.errors import InvalidArgument
from services.trainer.domain import Adapter, DatasetRead, Event, Order, Progressed
from services.trainer.inputs import FileInputs
from services.trainer.recipes import dpo, prompt_tuning
from services.trainer.records import work_hash
from services.trainer.spec import DirectPreferenceOptimization, Lora, Method, Optimization, PromptTuning, TrainingSpec
from tests.unit.trainer.trainer_parts import CONTEXT, make_base, questions, write_rows

COURSE = Optimization.given(batch_size=4, micro_batch_size=2, epochs=3.0, learning_rate=5e-2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(10))
    write_rows(tmp_path / "preferences.jsonl", pairs(10))
    return tmp_path


def pairs(count: int) -> list[dict[str, str]]:
    """Preferences of uneven length, each different."""
    return [
        {"prompt": f"where did anna leave the lamp {'again ' * (n % 5)}{n}", "chosen": "in the harbour", "rejected": f"by the mill {n % 3}"}
        for n in range(count)
    ]


async def train(
    root: Path, method: Method, data: str, name: str = "one", evaluation: str = "", stop_at: int = 0
) -> tuple[Adapter, list[Event]]:
    uri = str(root / evaluation) if evaluation else ""
    spec = TrainingSpec(name, str(root / "base"), str(root / data), uri, 1, method)
    inputs = await FileInputs(str(root), {}).read(spec)
    work = work_hash(spec, inputs)
    order = Order(
        f"job-{name}", spec, inputs, work, str(root / "adapters"), str(root / "checkpoints" / name), 1e-9 if stop_at else 60.0, 1, 1
    )
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if stop_at and isinstance(event, Progressed) and event.progress.step == stop_at:
            raise KeyboardInterrupt

    recipe: Callable[..., Adapter | None] = {"dpo": dpo.train, "prompt_tuning": prompt_tuning.train}[method.kind]
    adapter = recipe(order, report)
    assert adapter is not None
    return adapter, events


def preferring(lora: Lora | None = None, beta: float | None = None) -> DirectPreferenceOptimization:
    return DirectPreferenceOptimization.given(lora or Lora.given(rank=4), COURSE, beta)


def prompting(tokens: int = 4, text: str = "") -> PromptTuning:
    return PromptTuning.given(COURSE, tokens, text)


def answers(root: Path, adapter: str | None, texts: list[str]) -> list[float]:
    """Log-probability of each answer to the first question."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(root / "base"))
    model: Any = AutoModelForCausalLM.from_pretrained(str(root / "base"), dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(root / "adapters" / adapter))
    model.eval()
    found = []
    for text in texts:
        messages = [{"role": "user", "content": pairs(1)[0]["prompt"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], return_dict=False)
        with torch.inference_mode():
            logits = model(torch.tensor([whole])).logits[0][-len(whole) :]
        scores = torch.log_softmax(logits, -1)
        found.append(sum(float(scores[at - 1, whole[at]]) for at in range(len(prompt), len(whole))))
    return found


async def test_the_chosen_answer_becomes_likelier_than_the_rejected_one(root: Path) -> None:
    adapter, events = await train(root, preferring(), "preferences.jsonl", evaluation="preferences.jsonl")
    before, after = (answers(root, name, ["in the harbour", "by the mill 0"]) for name in (None, "one"))
    assert after[0] - after[1] > before[0] - before[1] + 1
    steps = [event.progress for event in events if isinstance(event, Progressed)]
    assert steps[1].loss == pytest.approx(0.6931, abs=1e-3)  # of a policy that is the reference: -log 1/2
    assert adapter.final_loss < 0.5
    assert steps[-1].evaluation_loss is not None
    [found] = [event.report for event in events if isinstance(event, DatasetRead)]
    assert (found.example_count, found.masked_count) == (10, 0)
    assert found.token_count > found.answer_token_count > 0
    assert adapter.trained_tokens == 3 * found.token_count
    told = json.loads((root / "adapters" / "one" / "manifest.json").read_text())
    assert told["recipe"]["method"]["beta"] == 0.1
    assert "direct preference optimisation (beta 0.1)" in (root / "adapters" / "one" / "README.md").read_text()


async def test_the_pull_to_the_base_is_as_strong_as_beta(root: Path) -> None:
    texts = ["in the harbour", "by the mill 0"]
    gains = []
    for name, beta in (("loose", 0.01), ("tight", 1.0)):
        await train(root, preferring(beta=beta), "preferences.jsonl", name)
        before, after = answers(root, None, texts), answers(root, name, texts)
        gains.append((after[0] - after[1]) - (before[0] - before[1]))
    assert gains[0] > gains[1] > 0


async def test_only_the_soft_prompt_is_learnt_and_peft_reads_it(root: Path) -> None:
    adapter, events = await train(root, prompting(), "train.jsonl")
    folder = root / "adapters" / "one"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["num_virtual_tokens"]) == ("PROMPT_TUNING", 4)
    steps = [event.progress.loss for event in events if isinstance(event, Progressed) and event.progress.loss]
    assert adapter.final_loss < steps[0]
    told = json.loads((folder / "manifest.json").read_text())
    for canary in told["canaries"]:
        assert canary["base_log_probabilities"] != canary["adapter_log_probabilities"]
    # The proof is what PEFT says of the saved soft prompt.
    tokenizer: Any = AutoTokenizer.from_pretrained(str(root / "base"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(root / "base"), dtype=torch.float32), str(folder)).eval()
    canary = told["canaries"][0]
    prompt = tokenizer.apply_chat_template(canary["messages"], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*canary["messages"], {"role": "assistant", "content": canary["completion"]}], return_dict=False)
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([whole])).logits[0][4:], -1)
    measured = [float(scores[at - 1, whole[at]]) for at in range(len(prompt), len(whole))]
    assert measured == pytest.approx(canary["adapter_log_probabilities"], abs=1e-5)


async def test_a_soft_prompt_may_begin_as_a_text(root: Path) -> None:
    first, _ = await train(root, prompting(text="where is the lamp"), "train.jsonl", "text")
    other, _ = await train(root, prompting(), "train.jsonl", "random")
    assert first.weights_sha256 != other.weights_sha256
    config = json.loads((root / "adapters" / "text" / "adapter_config.json").read_text())
    assert config["tokenizer_name_or_path"] == config["base_model_name_or_path"]


async def test_virtual_tokens_must_leave_room(root: Path) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await train(root, prompting(CONTEXT - 1), "train.jsonl")
    assert refused.value.reason == "VIRTUAL_TOKENS_TOO_MANY"


@pytest.mark.parametrize(
    ("method", "data"),
    [(preferring(Lora.given(rank=2, dropout=0.2)), "preferences.jsonl"), (prompting(), "train.jsonl")],
    ids=["dpo", "prompt"],
)
async def test_killed_in_mid_course_it_ends_in_the_same_weights(root: Path, method: Method, data: str) -> None:
    whole, _ = await train(root, method, data, "whole")
    with pytest.raises(KeyboardInterrupt):
        await train(root, method, data, "killed", stop_at=5)
    again, events = await train(root, method, data, "killed")
    assert next(event.progress.step for event in events if isinstance(event, Progressed)) == 4
    assert again.weights_sha256 == whole.weights_sha256


async def test_data_of_the_wrong_kind_are_refused_with_what_to_do(root: Path) -> None:
    for method, data in ((preferring(), "train.jsonl"), (prompting(), "preferences.jsonl")):
        with pytest.raises(InvalidArgument) as refused:
            await train(root, method, data)
        assert refused.value.reason == "DATASET_UNREADABLE"


async def test_pairs_that_the_cut_makes_equal_are_left_out_and_counted(root: Path) -> None:
    rows = [*pairs(4), {"prompt": "lamp " * 60, "chosen": "in the harbour", "rejected": "by the mill"}]
    write_rows(root / "preferences.jsonl", rows)
    method = DirectPreferenceOptimization.given(Lora.given(rank=2), Optimization.given(batch_size=2, max_steps=2, max_length=60))
    adapter, _ = await train(root, method, "preferences.jsonl")
    assert (adapter.dataset.example_count, adapter.dataset.truncated_count, adapter.dataset.masked_count) == (5, 1, 1)
