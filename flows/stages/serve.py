"""Stage 5: every adapter in the generator, with the proof that it is applied. Asks the generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunetrial.generator.v1 import generator_pb2

from flows.data_spec import is_folder
from flows.errors import UserError
from flows.served_models import all_models
from flows.stages.train import TrainedAdapter
from flows.trial import Trial


@dataclass(frozen=True, slots=True)
class Proof:
    """Evidence that an adapter is applied, in nats. `difference_from_manifest` is None when the trainer left no canaries.

    Of one that a provider keeps nothing is measured: `answered_as` is the name in the provider's answer.
    """

    adapter: str
    weights_sha256: str
    canary_count: int
    difference_from_base: float | None
    base_noise: float | None
    difference_from_manifest: float | None
    tolerance: float | None
    answered_as: str = ""


async def serve_base(trial: Trial, model: str) -> str:
    """The generator's name for a model of the spec. Raises UserError when it does not serve that model."""
    async with trial.services.use("generator") as clients:
        listed = [entry async for entry in all_models(clients)]
    bases = [entry for entry in listed if entry.kind == generator_pb2.MODEL_KIND_BASE]
    spec = trial.spec.models[model]
    if spec.base is None:
        right = [entry for entry in bases if (entry.engine, entry.uri) == (spec.engine, f"{spec.url.rstrip('/')}/{spec.model}")]
        wanted, advice = f"{spec.model} at {spec.url}", "Name it in its TUNETRIAL_ENGINES"
    else:
        base = trial.loaded.base(model)
        right = [entry for entry in bases if _is_base(trial, entry, base)]
        wanted, advice = f"the weights of {base}", "Start it with this base"
    if right:
        return right[0].name
    served = ", ".join(f"{entry.name} ({entry.uri}, weights {entry.weights_sha256[:12] or 'unknown'})" for entry in bases) or "none"
    raise UserError(
        f"models.{model}: the generator does not serve {wanted}; its base models: {served}. {advice}, "
        "or stop `tunetrial up` so that the trial starts its own"
    )


def _is_base(trial: Trial, entry: generator_pb2.Model, base: str) -> bool:
    if not is_folder(base):
        return base in (entry.uri, entry.name)
    # A name or a path says nothing of what is in memory: the weights do.
    return bool(entry.weights_sha256) and entry.weights_sha256 == trial.fingerprints.weights(Path(base))


async def serve_adapter(trial: Trial, base: str, adapter: TrainedAdapter) -> Proof:
    """Loads the adapter unless it is there already; the generator refuses one that is not applied."""
    request = generator_pb2.LoadAdapterRequest(name=adapter.name, uri=adapter.uri, base=base)
    async with trial.services.use("generator") as clients:
        model = (await clients.generator.LoadAdapter(request, timeout=600)).model
    proof = model.proof
    if proof.answered_as:
        return Proof(adapter.name, "", 0, None, None, None, None, proof.answered_as)
    return Proof(
        adapter.name,
        model.weights_sha256,
        proof.canary_count,
        proof.difference_from_base,
        proof.base_noise,
        proof.difference_from_manifest if proof.HasField("difference_from_manifest") else None,
        proof.tolerance,
    )
