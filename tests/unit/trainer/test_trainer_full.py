"""Full fine-tuning on a tiny random base: what is learnt, what is published, and that it goes on where it was cut off."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.common.errors import FailedPrecondition, InvalidArgument
from services.trainer import manifest
from services.trainer.domain import Adapter, Event, Order, Progressed
from services.trainer.inputs import FileInputs, text_sha256, weights_sha256
from services.trainer.recipes import full
from services.trainer.records import ADAPTER, work_hash
from services.trainer.spec import FullFineTuning, Optimization, TrainingSpec
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="compares in float32, on a CPU")

COURSE = Optimization.given(batch_size=4, micro_batch_size=2, epochs=4.0, learning_rate=3e-3)
STEPS = 12
"""Four epochs of ten rows."""


class Killed(BaseException):
    """Stands for the end of the process: nothing in the recipe heeds it."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(10))
    write_rows(tmp_path / "evaluation.jsonl", questions(3))
    return tmp_path


async def order_of(root: Path, name: str = "one", course: Optimization = COURSE, evaluation: bool = False, base: str = "base") -> Order:
    uri = str(root / "evaluation.jsonl") if evaluation else ""
    spec = TrainingSpec(name, str(root / base), str(root / "train.jsonl"), uri, 1, FullFineTuning(course))
    inputs = await FileInputs(str(root), {}).read(spec)
    folders = str(root / "adapters"), str(root / "checkpoints" / name)
    return Order(f"job-{name}", spec, inputs, work_hash(spec, inputs), *folders, 1e-9, 1)


def train(order: Order, heed: Callable[[Progressed], None] = lambda _: None) -> Adapter:
    def report(event: Event) -> None:
        if isinstance(event, Progressed):
            heed(event)

    adapter = full.train(order, report)
    assert adapter is not None
    return adapter


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def scored(folder: Path, canary: Any, dtype: torch.dtype) -> list[float]:
    """Log-probabilities of a canary's answer by plain transformers."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype).eval()
    prompt = tokenizer.apply_chat_template(canary["messages"], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*canary["messages"], {"role": "assistant", "content": canary["completion"]}], return_dict=False)
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].float(), -1)
    return [float(scores[at - 1, whole[at]]) for at in range(len(prompt), len(whole))]


def losses_of(order: Order) -> list[float]:
    found: dict[int, float] = {}
    train(order, lambda event: found.update({event.progress.step: event.progress.loss} if event.progress.loss is not None else {}))
    return list(found.values())


async def test_a_whole_model_is_published_and_its_proof_is_what_transformers_says_of_it(root: Path) -> None:
    (root / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.3}))
    adapter = train(await order_of(root, evaluation=True))
    folder = Path(adapter.uri)
    texts = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names(folder) == {"model.safetensors", "manifest.json", "README.md", *texts}
    # It sees the tokens that its base sees, and ends where that ends.
    assert all((folder / name).read_bytes() == (root / "base" / name).read_bytes() for name in texts)
    told = json.loads((folder / "manifest.json").read_text())
    assert (
        adapter.weights_sha256 == told["weights_sha256"] == weights_sha256(folder) != adapter.base_sha256 == weights_sha256(root / "base")
    )
    assert told["recipe"]["method"]["kind"] == "full"
    for canary in told["canaries"]:
        base, own = (canary[f"{who}_log_probabilities"] for who in ("base", "adapter"))
        assert scored(root / "base", canary, torch.float32) == pytest.approx(base, abs=1e-5)
        assert scored(folder, canary, torch.float32) == pytest.approx(own, abs=1e-5)
        assert sum(own) > sum(base) + 1
    before, after = (load_file(place / "model.safetensors") for place in (root / "base", folder))
    assert before.keys() == after.keys()
    assert [name for name, weights in before.items() if torch.equal(weights, after[name])] == []
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "All weights, trained by supervised fine-tuning" in card
    assert f"made of the base with sha256 `{adapter.base_sha256}`" in card


async def test_the_evaluation_loss_of_the_weights_that_are_kept_is_told(root: Path) -> None:
    course = replace(COURSE, epochs=30.0, learning_rate=1e-2, keep_best=True, patience=2)
    losses: set[float] = set()

    def heed(event: Progressed) -> None:
        if event.progress.evaluation_loss is not None:
            losses.add(event.progress.evaluation_loss)

    adapter = train(await order_of(root, course=course, evaluation=True), heed)
    assert 3 <= len(losses) < 30
    assert adapter.evaluation_loss == min(losses)
    assert manifest.read(Path(adapter.uri), "job-one") == adapter
    assert train(await order_of(root, "bare")).evaluation_loss is None
    # Records of before it was kept are read as ever.
    old = ADAPTER.dump_python(adapter, mode="json", exclude={"evaluation_loss"})
    assert ADAPTER.validate_python(old) == replace(adapter, evaluation_loss=None)


@pytest.mark.parametrize("keep_best", [False, True], ids=["last", "best"])
async def test_killed_at_any_steps_it_ends_in_the_weights_of_an_undisturbed_run(root: Path, keep_best: bool) -> None:
    course = replace(COURSE, keep_best=keep_best)
    whole = train(await order_of(root, "whole", course, evaluation=keep_best))
    order = await order_of(root, "killed", course, evaluation=keep_best)
    for at in sorted(random.Random(keep_best).sample(range(2, STEPS), 5)):  # noqa: S311  no secret

        def kill(event: Progressed, at: int = at) -> None:
            if event.progress.step >= at:
                raise Killed

        with pytest.raises(Killed):
            train(order, kill)
        torch.rand(3)  # Another process has another state.
    seen: list[int] = []
    again = train(order, lambda event: seen.append(event.progress.step))
    assert seen[0] > 0
    assert again.weights_sha256 == whole.weights_sha256
    assert (again.final_loss, again.trained_tokens, again.evaluation_loss) == (
        whole.final_loss,
        whole.trained_tokens,
        whole.evaluation_loss,
    )


async def test_weights_of_half_the_size_are_learnt_as_float32_and_published_as_they_came(root: Path) -> None:
    shutil.copytree(root / "base", root / "half")
    model: Any = AutoModelForCausalLM.from_pretrained(str(root / "base"), dtype=torch.bfloat16)
    model.save_pretrained(str(root / "half"))
    # Steps that bfloat16 does not tell apart from none.
    course = replace(COURSE, learning_rate=1e-5, epochs=40.0)
    adapter = train(await order_of(root, course=course, base="half"))
    with safe_open(str(Path(adapter.uri) / "model.safetensors"), "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118  it is no mapping
    before, after = (load_file(place / "model.safetensors") for place in (root / "half", Path(adapter.uri)))
    changed = [(before[name] != after[name]).float().mean().item() for name in before]
    assert sum(changed) / len(changed) > 0.05
    told = json.loads((Path(adapter.uri) / "manifest.json").read_text())
    assert told["canary_dtype"] == "bfloat16"
    for canary in told["canaries"]:
        assert scored(root / "half", canary, torch.bfloat16) == pytest.approx(canary["base_log_probabilities"], abs=1e-5)
        assert scored(Path(adapter.uri), canary, torch.bfloat16) == pytest.approx(canary["adapter_log_probabilities"], abs=1e-5)


async def test_the_precision_of_the_computation_changes_neither_what_is_published_nor_its_proof(root: Path) -> None:
    exact = losses_of(await order_of(root, "exact"))
    order = await order_of(root, "mixed", replace(COURSE, precision="bfloat16"))
    assert exact != (mixed := losses_of(order))
    assert mixed == pytest.approx(exact, rel=0.05)
    folder = root / "adapters" / "mixed"
    told = json.loads((folder / "manifest.json").read_text())
    assert told["canary_dtype"] == "float32"
    for canary in told["canaries"]:
        assert scored(folder, canary, torch.float32) == pytest.approx(canary["adapter_log_probabilities"], abs=1e-5)


async def test_a_model_in_several_files_is_published_whole_though_its_base_says_otherwise_of_its_own(root: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(str(root / "base"))
    (root / "base" / "model.safetensors").unlink()
    model.save_pretrained(str(root / "base"), max_shard_size="20KB")
    assert len(list((root / "base").glob("*.safetensors"))) > 1
    (root / "base" / "manifest.json").write_text("{}")
    folder = Path(train(await order_of(root)).uri)
    assert {name for name in names(folder) if "safetensors" in name} == {"model.safetensors"}
    canary = json.loads((folder / "manifest.json").read_text())["canaries"][0]
    assert scored(folder, canary, torch.float32) == pytest.approx(canary["adapter_log_probabilities"], abs=1e-5)


async def test_what_was_published_is_a_base_to_train_on(root: Path) -> None:
    first = train(await order_of(root))
    shutil.copytree(first.uri, root / "next")
    second = train(await order_of(root, "two", base="next"))
    assert second.base_sha256 == first.weights_sha256
    assert text_sha256(Path(second.uri)) != text_sha256(Path(first.uri))  # each has a manifest of its own
    assert (
        hashlib.sha256((Path(second.uri) / "tokenizer.json").read_bytes()).digest()
        == hashlib.sha256((root / "base" / "tokenizer.json").read_bytes()).digest()
    )


async def test_bases_that_cannot_be_trained_whole_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = await order_of(root)
    opened = full.open_base

    def quantized(order: Order) -> Any:
        base = opened(order)
        base.model.config.quantization_config = {"quant_method": "gptq"}
        return base

    monkeypatch.setattr(full, "open_base", quantized)
    with pytest.raises(FailedPrecondition, match="quantized") as refused:
        train(order)
    assert refused.value.reason == "BASE_QUANTIZED"


async def test_an_example_longer_than_the_base_takes_is_a_refusal_before_the_first_step(root: Path) -> None:
    with pytest.raises(InvalidArgument) as refused:
        train(await order_of(root, course=replace(COURSE, max_length=4096)), lambda _: pytest.fail("it began"))
    assert refused.value.reason == "MAX_LENGTH_TOO_LONG"
