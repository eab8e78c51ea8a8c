"""The recipe itself, in this process, on a tiny random base: what is learnt from, what comes out, and that it is the same every time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_trainer import SFTTrainer

from services.common.errors import FailedPrecondition, TunetrialError
from services.trainer import dataset, formats, manifest
from services.trainer.domain import Adapter, DatasetRead, Event, Order, Progressed
from services.trainer.inputs import FileInputs, weights_sha256
from services.trainer.recipes import sft
from services.trainer.records import work_hash
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning, TrainingSpec
from tests.unit.trainer.trainer_parts import FORGETFUL, make_base, questions, turns, write_rows

ROWS = 10
WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(ROWS))
    write_rows(tmp_path / "evaluation.jsonl", questions(3))
    return tmp_path


async def order_of(
    root: Path, name: str = "one", evaluation: str = "", seed: int = 1, lora: Lora | None = None, course: Optimization | None = None
) -> Order:
    method = SupervisedFineTuning(lora or Lora.given(rank=2), course or Optimization.given(batch_size=4, epochs=2.0, learning_rate=1e-2))
    spec = TrainingSpec(name, str(root / "base"), str(root / "train.jsonl"), evaluation, seed, method)
    inputs = await FileInputs(str(root), {}).read(spec)
    work = work_hash(spec, inputs)
    return Order(f"job-{name}", spec, inputs, work, str(root / "adapters"), str(root / "checkpoints" / work), 60.0, 1, 1)


def train(order: Order) -> tuple[Adapter, list[Event]]:
    events: list[Event] = []
    adapter = sft.train(order, events.append)
    assert adapter is not None
    return adapter, events


async def test_every_answer_token_is_learnt_once_an_epoch_and_nothing_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[dict[str, torch.Tensor]] = []

    compute_loss = sft.AnswerTrainer.compute_loss

    def recording(self: sft.AnswerTrainer, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        batches.append({name: inputs[name].clone() for name in ("input_ids", "labels", "attention_mask")})
        loss = compute_loss(self, model, inputs, *rest, **more)
        # The library's own, from the logits of all positions.
        assert loss.item() == pytest.approx(SFTTrainer.compute_loss(self, model, inputs, *rest, **more).item(), rel=1e-5)  # type: ignore[no-untyped-call]
        return loss

    monkeypatch.setattr(sft.AnswerTrainer, "compute_loss", recording)
    adapter, _ = train(await order_of(root, course=Optimization.given(batch_size=4, epochs=1.0)))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(root / "base"))
    rows = formats.conversations(root / "train.jsonl", "")
    expected = sorted((ids, labels) for ids, labels in (dataset.tokenize(tokenizer, row) for row in rows))
    seen = []
    for batch in batches:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert bool((labels[length:] == dataset.IGNORED).all())
            seen.append((ids[:length].tolist(), labels[:length].tolist()))
    assert sorted(seen) == expected
    assert adapter.trained_tokens == adapter.dataset.token_count == sum(len(ids) for ids, _ in expected)


async def test_progress_and_report_are_complete(root: Path) -> None:
    adapter, events = train(await order_of(root, evaluation=str(root / "evaluation.jsonl")))
    reports = [event.report for event in events if isinstance(event, DatasetRead)]
    assert reports == [adapter.dataset]
    assert adapter.dataset.example_count == ROWS
    steps = [event.progress for event in events if isinstance(event, Progressed)]
    assert [progress.step for progress in steps] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert {progress.step_count for progress in steps} == {6}
    last = steps[-1]
    assert last.remaining_s == 0
    assert None not in (last.loss, last.evaluation_loss, last.tokens_per_second, last.gradient_norm, last.learning_rate)
    assert steps[3].evaluation_loss is None
    assert adapter.final_loss == last.loss
    assert steps[1].loss is not None
    assert adapter.final_loss < steps[1].loss


async def test_an_adapter_comes_with_all_that_proves_it(root: Path) -> None:
    order = await order_of(root, lora=Lora.given(rank=2, target_modules=["q_proj", "down_proj"], rank_stabilized=True, dora=True))
    adapter, _ = train(order)
    folder = root / "adapters" / "one"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "README.md"}
    assert [path.name for path in (root / "adapters").iterdir()] == ["one"]
    assert manifest.AdapterFiles(root / "adapters").published("one", "job-one") == adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["use_dora"]) == (2, 4, True, True)
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    told = json.loads((folder / "manifest.json").read_text())
    assert told["base_sha256"] == weights_sha256(root / "base")
    assert (told["work"], told["seed"], told["max_length"]) == (order.work, 1, 128)
    assert told["recipe"]["method"]["lora"]["rank"] == 2
    assert {"torch", "transformers", "peft", "trl"} <= told["library_versions"].keys()


async def test_canaries_are_what_the_saved_adapter_says(root: Path) -> None:
    train(await order_of(root))
    told = json.loads((root / "adapters" / "one" / "manifest.json").read_text())
    tokenizer: Any = AutoTokenizer.from_pretrained(str(root / "base"))
    base = AutoModelForCausalLM.from_pretrained(str(root / "base"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(root / "adapters" / "one")).eval()
    assert len(told["canaries"]) == 4
    for canary in told["canaries"]:
        prompt = tokenizer.apply_chat_template(canary["messages"], add_generation_prompt=True, return_dict=False)
        answer = {"role": "assistant", "content": canary["completion"]}
        full = tokenizer.apply_chat_template([*canary["messages"], answer], return_dict=False)
        measured = []
        for disabled in (True, False):
            with torch.inference_mode():
                if disabled:
                    with model.disable_adapter():
                        logits = model(torch.tensor([full])).logits[0]
                else:
                    logits = model(torch.tensor([full])).logits[0]
            scores = torch.log_softmax(logits, -1)
            measured.append([float(scores[at - 1, full[at]]) for at in range(len(prompt), len(full))])
        assert measured[0] == pytest.approx(canary["base_log_probabilities"], abs=1e-5)
        assert measured[1] == pytest.approx(canary["adapter_log_probabilities"], abs=1e-5)
        assert max(abs(a - b) for a, b in zip(*measured, strict=True)) > 0.01


async def test_the_same_job_gives_the_same_weights_and_another_seed_others(root: Path) -> None:
    lora = Lora.given(rank=2, dropout=0.1)
    first, _ = train(await order_of(root, "one", lora=lora))
    torch.rand(7)  # The state that a process happens to be in must not matter.
    again, _ = train(await order_of(root, "two", lora=lora))
    other, _ = train(await order_of(root, "three", seed=2, lora=lora))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


async def test_small_pieces_of_a_batch_add_up_to_the_batch(root: Path) -> None:
    course = Optimization.given(batch_size=4, epochs=1.0, learning_rate=1e-3)
    whole, _ = train(await order_of(root, "one", course=course))
    pieces, _ = train(await order_of(root, "two", course=replace(course, micro_batch_size=2)))
    assert pieces.final_loss == pytest.approx(whole.final_loss, rel=1e-4)


@pytest.mark.parametrize(
    ("lora", "course", "reason"),
    [
        (Lora.given(target_modules=["q_proj", "attention"]), Optimization.given(), "TARGET_MODULES_UNKNOWN"),
        (Lora.given(), Optimization.given(max_length=129), "MAX_LENGTH_TOO_LONG"),
        (Lora.given(), Optimization.given(max_length=4), "ALL_MASKED"),
        pytest.param(Lora.given(four_bit=True), Optimization.given(), "CUDA_NEEDED", marks=WITHOUT_CUDA),
        (Lora.given(), Optimization.given(learning_rate=1e30, schedule="constant"), "LOSS_NOT_FINITE"),
    ],
)
async def test_settings_that_cannot_work_leave_no_adapter(root: Path, lora: Lora, course: Optimization, reason: str) -> None:
    order = await order_of(root, lora=lora, course=course)
    with pytest.raises(TunetrialError) as error:
        train(order)
    assert error.value.reason == reason
    assert not manifest.AdapterFiles(root / "adapters").exists("one")


async def test_files_that_changed_since_the_job_was_created_are_not_trained_on(root: Path) -> None:
    order = await order_of(root)
    write_rows(root / "train.jsonl", questions(ROWS - 1))
    with pytest.raises(FailedPrecondition, match=r"train.jsonl changed since the job was created"):
        train(order)
    (root / "base" / "chat_template.jinja").write_text(FORGETFUL)
    with pytest.raises(FailedPrecondition, match=r"base .* changed since the job was created"):
        train(order)


async def test_a_base_without_chat_template_is_refused(root: Path) -> None:
    (root / "base" / "chat_template.jinja").unlink()
    with pytest.raises(FailedPrecondition, match="no chat template"):
        train(await order_of(root))


async def test_data_of_which_nothing_fits_whole_still_gives_canaries(root: Path) -> None:
    write_rows(root / "train.jsonl", [turns("lamp " * 60, "there " * 100) for _ in range(4)])
    order = await order_of(root, course=Optimization.given(max_steps=1, max_length=120))
    adapter, _ = train(order)
    assert adapter.dataset.truncated_count == 4
    [canary] = json.loads((root / "adapters" / "one" / "manifest.json").read_text())["canaries"]
    assert all(math.isfinite(value) for value in canary["adapter_log_probabilities"])
