"""Domain values as JSON, for the database, the training process and manifests. Knows neither of the three."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from services.trainer.domain import Adapter, DatasetReport, Event, Inputs, Order, Progress
from services.trainer.spec import TrainingSpec

SPEC: TypeAdapter[TrainingSpec] = TypeAdapter(TrainingSpec)
INPUTS: TypeAdapter[Inputs] = TypeAdapter(Inputs)
PROGRESS: TypeAdapter[Progress] = TypeAdapter(Progress)
DATASET: TypeAdapter[DatasetReport] = TypeAdapter(DatasetReport)
ADAPTER: TypeAdapter[Adapter] = TypeAdapter(Adapter)
ORDER: TypeAdapter[Order] = TypeAdapter(Order)
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def spec_json(spec: TrainingSpec) -> dict[str, Any]:
    """The whole spec, defaults filled in, as JSON values."""
    return SPEC.dump_python(spec, mode="json")  # type: ignore[no-any-return]  # pydantic types it as Any


def work_hash(spec: TrainingSpec, inputs: Inputs) -> str:
    """sha256 over all that decides the result: base, data, method, seed and name. Where the files lie does not matter."""
    base = [inputs.base_sha256, inputs.base_text_sha256] if inputs.base_sha256 else [inputs.base_hub_name, inputs.base_revision]
    if inputs.provider is not None:
        base = [inputs.provider, spec.base]
    decides = {
        "base": base,
        "dataset": inputs.dataset_sha256,
        "evaluation": inputs.evaluation_sha256,
        "method": spec_json(spec)["method"],
        "seed": spec.seed,
        "adapter_name": spec.adapter_name,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
