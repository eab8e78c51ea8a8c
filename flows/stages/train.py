"""Stage 4: one adapter for each family, size and seed. Asks the trainer, which keeps the jobs; a job that was done is not done again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunetrial.trainer.v1 import trainer_pb2

from flows.connections import together
from flows.data.split import place
from flows.data.training_set import TrainingContext, training_set
from flows.errors import UserError
from flows.records import Example, Hit
from flows.stages.preferences import divided_pairs
from flows.stages.prepare import Prepared
from flows.stages.snapshot import Snapshot
from flows.stages.training_job import adapter_of_job
from flows.store import digest
from flows.training_spec import TrainingSpec
from flows.trial import Trial

VERSION = 1


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """What tells the adapters of a trial apart."""

    family: str
    size: int
    seed: int


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A finished adapter and what training said about it."""

    family: str
    size: int
    seed: int
    name: str
    """Its name with the trainer and the generator, unique to what went into it."""
    uri: str
    weights_sha256: str
    final_loss: float | None
    """None where a provider did not tell."""
    trained_tokens: int
    training_s: float
    examples: int
    truncated: int
    masked: int
    short: int
    """Examples with fewer distractors than asked for."""
    evaluation_loss: float | None = None
    """Loss of its weights on the evaluation part, in nats; None without one."""

    @property
    def identity(self) -> str:
        """What tells it from others: its weights, or its name at the provider that keeps them."""
        return self.weights_sha256 or self.uri


@dataclass(frozen=True, slots=True)
class Rows:
    """What a job trains on and evaluates on, as the trainer reads it."""

    training: list[dict[str, Any]]
    evaluation: list[dict[str, Any]]
    short: int = 0
    """Examples with fewer distractors than asked for."""


async def train(
    trial: Trial, prepared: Prepared, snapshot: Snapshot | None, chosen: Mapping[str, TrainingSpec] | None = None
) -> dict[AdapterKey, TrainedAdapter]:
    """All adapters that arms of the spec use; `chosen` has the settings of families for which they were searched."""
    wanted = [
        AdapterKey(family, size, seed)
        for family in sorted({arm.adapter for arm in trial.spec.arms.values() if arm.adapter is not None})
        for size in trial.spec.training[family].sizes
        for seed in trial.spec.training[family].seeds
    ]
    if not wanted:
        return {}
    trial.progress.stage("train", len(wanted))
    parts = {family: prepared.of_family(family) for family in {key.family for key in wanted}}
    settings = {**trial.spec.training, **(chosen or {})}
    adapters = await together(_one(trial, parts[key.family], snapshot, settings[key.family], key) for key in wanted)
    trial.progress.finish("train", f"{len(wanted)} adapters")
    return dict(zip(wanted, adapters, strict=True))


async def _one(trial: Trial, prepared: Prepared, snapshot: Snapshot | None, training: TrainingSpec, key: AdapterKey) -> TrainedAdapter:
    return await trained(trial, training, rows_of(trial, prepared, snapshot, key), key)


def rows_of(trial: Trial, prepared: Prepared, snapshot: Snapshot | None, key: AdapterKey) -> Rows:
    """What this adapter learns from; `prepared` is that of its family. UserError when one of the two parts would be empty."""
    training = trial.spec.training[key.family]
    if training.preferences is not None:
        return Rows(*divided_pairs(trial, prepared, key.family, key.size))
    examples, short = _examples(trial, prepared, snapshot, training, key.size)
    return Rows(*_divided(trial, prepared, examples, key), short)


async def trained(trial: Trial, training: TrainingSpec, rows: Rows, key: AdapterKey, stage: str = "train") -> TrainedAdapter:
    """The adapter that these settings make of these rows; trained unless it is there. Raises TrainingFailed, and TrialError."""
    rows_key, evaluation_key = digest(rows.training), digest(rows.evaluation) if rows.evaluation else None
    recipe = training.recipe()
    inputs = {
        "version": VERSION,
        "base": trial.base_identity(training.model),
        "rows": rows_key,
        "evaluation": evaluation_key,
        "recipe": recipe,
        "seed": key.seed,
    }
    address = digest(inputs)
    # Named by what went into it alone: two families that come to the same work share one job.
    name = f"adapter-{address[:16]}"
    label = f"{key.family}-{key.size}-s{key.seed}"
    known = _known(trial, address, key, evaluated=bool(rows.evaluation))
    if known is None:
        write = trial.store.write_lines
        spec = trainer_pb2.TrainingSpec(
            adapter_name=name,
            base=trial.spec.models[training.model].model or trial.loaded.base(training.model),
            dataset_uri=write("training-sets", rows_key, "train.jsonl", rows.training),
            evaluation_uri=write("training-sets", evaluation_key, "evaluation.jsonl", rows.evaluation) if evaluation_key else "",
            seed=key.seed,
            **_method(training),
        )
        known = _of(await adapter_of_job(trial, spec, address, label, stage), key, rows.short)
        trial.store.write_json("adapters", address, "adapter.json", asdict(known))
        trial.store.finish("adapters", address, inputs)
    trial.progress.advance(stage, note=label)
    return known


def _divided(
    trial: Trial, prepared: Prepared, examples: Sequence[Example], key: AdapterKey
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and rows to evaluate on. Whole clusters, drawn by their names: the same in sets of every size. Of those to evaluate
    on, the classes of `knowledge.evaluate_on` are there only."""
    share = trial.spec.training[key.family].evaluation
    clusters = {item.id: item.cluster for item in prepared.pool}
    known = prepared.knowledge.get(key.family)
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in examples:
        turns = trial.template.turns(row.question, prepared.shown(row.passages), answer=row.answer)
        evaluates = place(trial.spec.data.seed, "evaluation", clusters[row.item]) < share
        if evaluates and known is not None and not known.measures(row.item):
            continue
        rows[evaluates].append({"messages": turns})
    if share and not all(rows):
        of_classes = ", classes of knowledge.evaluate_on" if known is not None else ""
        raise UserError(
            f"training.{key.family}: of {len(examples)} training questions {len(rows[1])} would be kept for evaluation (share {share:g}, "
            f"whole clusters{of_classes}): change evaluation, or train on more questions"
        )
    return rows


def _known(trial: Trial, address: str, key: AdapterKey, *, evaluated: bool) -> TrainedAdapter | None:
    if not trial.store.has("adapters", address):
        return None
    kept = trial.store.read_json("adapters", address, "adapter.json")
    if evaluated and "evaluation_loss" not in kept:
        return None  # an older version did not ask for it; the trainer has the job still
    # Identical jobs of two families are trained once; the names are those of the asker.
    found = TrainedAdapter(**kept)
    if found.uri.startswith("/") and not any(Path(found.uri).glob("*.safetensors")):
        return None
    return replace(found, family=key.family, size=key.size, seed=key.seed)


def _examples(
    trial: Trial, prepared: Prepared, snapshot: Snapshot | None, training: TrainingSpec, size: int
) -> tuple[tuple[Example, ...], int]:
    raft = training.raft
    context = TrainingContext(kind=training.context_name)  # type: ignore[arg-type]  # one of its names, checked by the spec
    if raft is not None:
        context = TrainingContext(
            "raft",
            gold_probability=raft.gold_probability,
            distractors=raft.distractors,
            distractor_source="retrieved" if raft.hard else "random",
            without_gold=raft.without_gold,
            quote=raft.quote,
        )
    made = training_set(
        prepared.pool[:size],
        context,
        passages=prepared.by_id,
        gold=prepared.gold,
        hits=_hits(snapshot, training),
        parents=prepared.parent_of,
        abstention=trial.template.abstentions[0],
        seed=trial.spec.data.seed,
    )
    if made.unquoted_count:
        trial.progress.say(f"{made.unquoted_count} of {len(made.examples)} examples quote nothing: no sentence they show is the evidence")
    return made.examples, made.short_count


def _hits(snapshot: Snapshot | None, training: TrainingSpec) -> Mapping[str, tuple[Hit, ...]]:
    if snapshot is None:
        return {}
    if training.context_name != "retrieved":
        return snapshot.by_item
    return {item: hits[: snapshot.k] for item, hits in snapshot.by_item.items()}


_COURSE = (
    *("epochs", "max_steps", "learning_rate", "batch_size", "micro_batch_size", "max_length", "warmup_ratio", "weight_decay", "schedule"),
    *("precision", "gradient_checkpointing", "keep_best", "patience"),
)
"""Settings that bear the same names in a spec and in the trainer's contract."""


def _method(training: TrainingSpec) -> dict[str, Any]:
    if training.method == "hosted":
        values = {name: json.dumps(value) for name, value in training.hyperparameters.items()}
        return {"hosted": trainer_pb2.HostedFineTuning(hyperparameters=values)}
    given = {name: getattr(training, name) for name in _COURSE}
    course = trainer_pb2.Optimization(**{name: value for name, value in given.items() if value is not None})
    if training.method == "full":
        return {"full": trainer_pb2.FullFineTuning(optimization=course)}
    if training.method == "prompt_tuning":
        text = training.initial_text or None
        return {"prompt_tuning": trainer_pb2.PromptTuning(virtual_tokens=training.virtual_tokens, initial_text=text, optimization=course)}
    lora = {name: value for name, value in training.lora.model_dump().items() if value is not None}
    if training.method == "dpo":
        dpo = trainer_pb2.DirectPreferenceOptimization(lora=trainer_pb2.Lora(**lora), optimization=course, beta=training.beta)
        return {"dpo": dpo}
    return {"sft": trainer_pb2.SupervisedFineTuning(lora=trainer_pb2.Lora(**lora), optimization=course)}


def _of(adapter: trainer_pb2.Adapter, key: AdapterKey, short: int) -> TrainedAdapter:
    return TrainedAdapter(
        key.family,
        key.size,
        key.seed,
        adapter.name,
        adapter.uri,
        adapter.weights_sha256,
        None if math.isnan(adapter.final_loss) else adapter.final_loss,
        adapter.trained_tokens,
        adapter.training_s,
        adapter.dataset.example_count,
        adapter.dataset.truncated_count,
        adapter.dataset.masked_count,
        short,
        adapter.evaluation_loss if adapter.HasField("evaluation_loss") else None,
    )
