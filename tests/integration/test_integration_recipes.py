"""What each recipe of the trainer makes is loaded, proven and used by the generator."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.generator.catalog import Catalog
from services.generator.domain import Decoding, State, Turn
from services.generator.generator import Call, Generator, Manner, Text
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.transformers_engine import TransformersEngine
from services.trainer.domain import Order
from services.trainer.inputs import FileInputs
from services.trainer.recipes import dpo, full, prompt_tuning, sft
from services.trainer.records import work_hash
from services.trainer.spec import (
    DirectPreferenceOptimization,
    FullFineTuning,
    Lora,
    Method,
    Optimization,
    PromptTuning,
    SupervisedFineTuning,
    TrainingSpec,
)
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="compares in float32, on a CPU")

COURSE = Optimization.given(batch_size=5, epochs=8.0, learning_rate=5e-2)
ANSWER = "in the harbour"
RECIPES = {"sft": sft.train, "full": full.train, "dpo": dpo.train, "prompt_tuning": prompt_tuning.train}
METHODS: dict[str, Method] = {
    "lora": SupervisedFineTuning(Lora.given(rank=4), COURSE),
    "rslora": SupervisedFineTuning(Lora.given(rank=4, rank_stabilized=True, target_modules=["q_proj", "down_proj"]), COURSE),
    "qlora": SupervisedFineTuning(Lora.given(rank=4, four_bit=True), COURSE),
    "full": FullFineTuning(replace(COURSE, learning_rate=1e-2)),
    "dpo": DirectPreferenceOptimization.given(Lora.given(rank=4), COURSE),
    "soft": PromptTuning.given(COURSE, 4),
}


async def trained(root: Path, name: str) -> Path:
    """The folder of the adapter that a method makes."""
    method = METHODS[name]
    data = root / ("preferences.jsonl" if method.kind == "dpo" else "train.jsonl")
    spec = TrainingSpec(name, str(root / "base"), str(data), "", 1, method)
    inputs = await FileInputs(str(root), {}).read(spec)
    folders = str(root / "adapters"), str(root / "checkpoints" / name)
    order = Order(name, spec, inputs, work_hash(spec, inputs), *folders, 60.0, 1, four_bit_on_cpu=True)
    adapter = RECIPES[method.kind](order, lambda _: None)
    assert adapter is not None
    return Path(adapter.uri)


async def test_adapters_of_all_recipes_are_proven_and_answer_side_by_side(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(10))
    asked = [row["messages"][0]["content"] for row in questions(10)]
    write_rows(tmp_path / "preferences.jsonl", [{"prompt": text, "chosen": ANSWER, "rejected": f"by the mill {text}"} for text in asked])
    engine = TransformersEngine("tiny", str(tmp_path / "base"))
    catalog = Catalog({"tiny": engine}, SqlAlchemyModels(tmp_path / "data"), uri_roots=str(tmp_path), tolerance=0.01, queue_limit=8)
    await catalog.prepare()
    generator = Generator(catalog, None, 64)

    async def says(model: str) -> str:
        call = Call(model, (Turn("user", asked[0]),), Decoding(max_tokens=24))
        (made,) = [piece async for piece in generator.generate(call, Manner("me"))]
        assert isinstance(made, Text)
        return made.generation.text

    try:
        texts = {"tiny": await says("tiny")}
        for name in METHODS:
            model = await catalog.load(name, str(await trained(tmp_path, name)), "tiny")
            assert model.state is State.VERIFIED, name
            texts[name] = await says(name)
        # Each of them learnt to say where the lamp is, and the base goes on as before.
        assert all(ANSWER in texts[name] for name in ("lora", "rslora", "qlora", "full")), texts
        assert texts["dpo"] != texts["tiny"] != texts["soft"], texts
        assert await says("tiny") == texts["tiny"]
        # Whatever runs beside it, each answers with its own weights.
        assert dict(zip(texts, await asyncio.gather(*map(says, texts)), strict=True)) == texts
    finally:
        await catalog.close()
