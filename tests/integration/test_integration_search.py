"""A search for settings and training on pairs of answers, from a spec, by the trainer's own process on a tiny base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from flows.connections import Services
from flows.local_stack import LocalStack
from flows.progress import Silent
from flows.spec_file import load
from flows.stages.preferences import preferences
from flows.stages.prepare import prepare
from flows.stages.search import search, settings_of
from flows.stages.train import AdapterKey, train
from flows.store import Store
from flows.trial import Trial
from tests.unit.trainer.trainer_parts import make_base, write_rows

SPEC = """
name: towers
data: {reader: table, path: questions.jsonl, test_items: 4, near_duplicate: 1.0}
models: {tiny: {base: ./base}}
training:
  tuned:
    {model: tiny, sizes: [8], evaluation: 0.3, batch_size: 4, max_steps: 4, lora: {rank: 2},
     search: {trials: 3, parameters: {learning_rate: [1e-2, 1e-6]}}}
  preferred:
    {model: tiny, method: dpo, preferences: {file: pairs.jsonl}, sizes: [6], beta: 0.2, evaluation: 0.3, batch_size: 2, max_steps: 2,
     search: {trials: 1, parameters: {rank: [2]}}}
arms:
  base: {model: tiny, rag: false}
  tuned: {adapter: tuned, rag: false}
  preferred: {adapter: preferred, rag: false}
analysis: {control: base, primary: {arm: tuned}}
"""


def written(folder: Path) -> Path:
    """A spec with all that it names."""
    make_base(folder / "base")
    asked = (
        "lamp",
        "mill",
        "tower",
        "harbour",
        "market",
        "valley",
        "capital",
        "lamp post",
        "water mill",
        "old tower",
        "port",
        "fair",
        "dale",
    )
    write_rows(folder / "questions.jsonl", [{"question": f"where is the {name}", "reference": f"by the {name}"} for name in asked])
    pairs = [{"prompt": f"what is number {n}", "chosen": "it is the tower", "rejected": f"in the harbour {n}"} for n in range(8)]
    write_rows(folder / "pairs.jsonl", pairs)
    (folder / "spec.yaml").write_text(SPEC)
    assert yaml.safe_load(SPEC)
    return folder / "spec.yaml"


async def test_settings_are_searched_and_pairs_are_trained_on_by_a_real_trainer(tmp_path: Path) -> None:
    loaded, home = load(written(tmp_path)), tmp_path / "home"
    stack = LocalStack(home, loaded.bases, (tmp_path / "base",), services=("trainer",))
    trial = Trial(loaded, home, Store(str(home / "store")), Services({}, stack), Silent())
    try:
        prepared = await preferences(trial, await prepare(trial))
        found = await search(trial, prepared, None)
        adapters = await train(trial, prepared, None, settings_of(trial, found))
        again = await search(trial, prepared, None)
    finally:
        await trial.services.close()
    assert again == found
    losses = {one.settings["learning_rate"]: one.evaluation_loss for one in found["tuned"].tried}
    assert losses[0.01] != losses[1e-6]
    assert found["tuned"].best.settings["learning_rate"] == min(losses, key=lambda rate: losses[rate] or 0.0)
    assert {one.adapter for one in found["tuned"].tried if one.evaluation_loss == found["tuned"].best.evaluation_loss} == {
        adapters[AdapterKey("tuned", 8, 1)].name
    }
    manifest: dict[str, Any] = json.loads((Path(adapters[AdapterKey("preferred", 6, 1)].uri) / "manifest.json").read_text())
    method = manifest["recipe"]["method"]
    assert (method["kind"], method["beta"], method["lora"]["rank"]) == ("dpo", 0.2, 2)
    assert adapters[AdapterKey("preferred", 6, 1)].evaluation_loss == manifest["evaluation_loss"] is not None
    jobs = {one.adapter for family in found.values() for one in family.tried}
    assert {replace(adapter).name for adapter in adapters.values()} <= jobs, "what was taken is not trained again"
