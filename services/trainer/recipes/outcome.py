"""From a trained model to a published adapter: proof, weights, manifest. Knows no method of training."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.trainer import canaries, manifest
from services.trainer.canaries import Canary
from services.trainer.domain import Adapter, DatasetReport, Order
from services.trainer.inputs import file_sha256
from services.trainer.recipes.base import Base
from services.trainer.recipes.progress import ProgressReporter
from services.trainer.records import spec_json

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
    partial = manifest.partial_folder(Path(order.adapters_dir), order.job_id)
    trained.eval()
    measured = canaries.measure(trained, learnt.canaries)
    # The path of the base on this machine means nothing elsewhere.
    config = trained.peft_config["default"]
    config.base_model_name_or_path = spec.base
    if getattr(config, "tokenizer_name_or_path", None):
        config.tokenizer_name_or_path = spec.base
    # The embedding layers are the base's own, and asking the hub whether they changed would need the network.
    trained.save_pretrained(str(partial), save_embedding_layers=False)
    final = Path(order.adapters_dir) / spec.adapter_name
    adapter = Adapter(
        name=spec.adapter_name,
        uri=str(final),
        base=spec.base,
        base_sha256=base.sha256,
        weights_sha256=file_sha256(partial / manifest.WEIGHTS),
        dataset_sha256=order.inputs.dataset_sha256,
        job_id=order.job_id,
        final_loss=progress.final_loss,
        trained_tokens=progress.tokens,
        training_s=progress.seconds,
        dataset=learnt.report,
        library_versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        create_time=datetime.now(UTC),
    )
    more = {
        "work": order.work,
        "seed": spec.seed,
        "recipe": spec_json(spec),
        "max_length": learnt.max_length,
        "base_revision": order.inputs.base_revision,
        "evaluation_sha256": order.inputs.evaluation_sha256,
        "evaluation_loss": progress.kept_evaluation_loss,
        "step": progress.kept_step,
        "steps": progress.last.step,
        "canary_dtype": str(trained.dtype).removeprefix("torch."),
        "canaries": measured,
    }
    manifest.write(partial, adapter, more)
    manifest.publish(partial, final, order.job_id)
    return adapter
