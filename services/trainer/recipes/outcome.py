"""From a trained model to a published adapter, or a model of its own: proof, weights, manifest. Knows no method of training."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from services.trainer import canaries, manifest, publishing
from services.trainer.canaries import Canary
from services.trainer.domain import Adapter, DatasetReport, Order
from services.trainer.inputs import TEXT_PATTERNS, file_sha256, weights_sha256
from services.trainer.recipes.base import Base, load_model, precision
from services.trainer.recipes.progress import ProgressReporter
from services.trainer.records import spec_json

_NOT_COPIED = {"manifest.json", "model.safetensors.index.json"}
"""Texts of a base that say what is true of the base alone."""
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a training was given, beside its order."""

    report: DatasetReport
    canaries: Sequence[Canary]
    max_length: int


def publish(order: Order, base: Base, learnt: Learnt, trained: Any, progress: ProgressReporter) -> Adapter | None:
    """Writes the adapter `trained`, a PEFT model, under its name; of several processes the first does, the others return None.

    Raises OSError; then nothing is published.
    """
    if not progress.leads:
        return None
    spec = order.spec
    partial = publishing.partial_folder(order)
    # The path of the base on this machine means nothing elsewhere.
    config = trained.peft_config["default"]
    config.base_model_name_or_path = spec.base
    if getattr(config, "tokenizer_name_or_path", None):
        config.tokenizer_name_or_path = spec.base
    # The embedding layers are the base's own, and asking the hub whether they changed would need the network.
    trained.save_pretrained(str(partial), save_embedding_layers=False)
    measured = canaries.measure(_as_served(order, base, trained, partial).eval(), learnt.canaries)
    proof = {"canary_dtype": _named(precision(spec.course)), "canaries": measured}
    return _finish(order, base, learnt, progress, partial, file_sha256(partial / manifest.WEIGHTS), proof)


def publish_model(
    order: Order, base: Base, learnt: Learnt, trained: Any, before: Sequence[list[float]], progress: ProgressReporter
) -> Adapter | None:
    """The same for a model all of whose weights were trained; `before` holds the base's own log-probabilities of the canaries.

    Beside its weights it has all texts of its base, as they are: it sees the very tokens that its base sees, and ends where it ends.
    """
    if not progress.leads:
        return None
    partial = publishing.partial_folder(order)
    trained.save_pretrained(str(partial))
    # What training makes of it ends answers elsewhere than the base's own.
    (partial / "generation_config.json").unlink(missing_ok=True)
    for pattern in TEXT_PATTERNS:
        for text in base.folder.glob(pattern):
            if text.name not in _NOT_COPIED:
                shutil.copyfile(text, partial / text.name)
    measured = canaries.measure(trained.eval(), learnt.canaries, before)
    proof = {"canary_dtype": _named(trained.dtype), "canaries": measured}
    return _finish(order, base, learnt, progress, partial, weights_sha256(partial), proof)


def _finish(
    order: Order, base: Base, learnt: Learnt, progress: ProgressReporter, partial: Path, weights: str, proof: Mapping[str, Any]
) -> Adapter:
    spec = order.spec
    adapter = Adapter(
        name=spec.adapter_name,
        uri=publishing.final_uri(order),
        base=spec.base,
        base_sha256=base.sha256,
        weights_sha256=weights,
        dataset_sha256=order.inputs.dataset_sha256,
        job_id=order.job_id,
        final_loss=progress.final_loss,
        trained_tokens=progress.tokens,
        training_s=progress.seconds,
        dataset=learnt.report,
        library_versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        create_time=datetime.now(UTC),
        evaluation_loss=progress.kept_evaluation_loss,
    )
    more = {
        "work": order.work,
        "seed": spec.seed,
        "recipe": spec_json(spec),
        "max_length": learnt.max_length,
        "base_revision": order.inputs.base_revision,
        "evaluation_sha256": order.inputs.evaluation_sha256,
        "step": progress.kept_step,
        "steps": progress.last.step,
        **proof,
    }
    manifest.write(partial, adapter, more)
    publishing.publish(order, partial, lambda: progress.saved(progress.last.step))
    return adapter


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_served(order: Order, base: Base, trained: Any, adapter: Path) -> Any:
    """What the proof is of: over a base in four bits an adapter is learnt only, and served over the base as it is."""
    if not order.spec.four_bit:
        return trained
    return PeftModel.from_pretrained(load_model(base.folder, precision(order.spec.course), place="auto"), str(adapter))
