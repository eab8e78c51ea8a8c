"""Stage 10: an alias that shall stand for the primary arm's adapter, where the trial's gate is passed. Asks the generator."""

from __future__ import annotations

from collections.abc import Mapping

from tunetrial.generator.v1 import generator_pb2

from flows.stages.serve import serve_adapter, serve_base
from flows.stages.train import AdapterKey, TrainedAdapter
from flows.trial import Trial


async def promote(trial: Trial, adapters: Mapping[AdapterKey, TrainedAdapter], *, alias: str, passed: bool) -> str:
    """What the alias stands for now, of all training seeds the first; "" when the gate is not passed."""
    if not passed:
        trial.progress.say(f"promote: the gate is not passed, so alias {alias} is left as it is")
        return ""
    primary = trial.spec.primary_arm()
    contestant = next(one for one in trial.spec.contestants() if one.arm == primary)
    model = await serve_base(trial, contestant.model)
    if contestant.adapter is not None:
        adapter = adapters[AdapterKey(contestant.adapter, contestant.size or 0, contestant.seed or 0)]
        await serve_adapter(trial, model, adapter)
        model = adapter.name
    async with trial.services.use("generator") as clients:
        await clients.generator.SetAlias(generator_pb2.SetAliasRequest(alias=alias, target=model), timeout=60)
    trial.progress.say(f"promote: alias {alias} stands for {contestant.id} ({model}) now")
    return model
