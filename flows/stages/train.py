"""Stage 4: one adapter for each family, size and seed. Asks the trainer, which keeps the jobs; a job that was done is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from tunetrial.trainer.v1 import trainer_pb2

from flows.clients import Clients
from flows.connections import together
from flows.data.split import place
from flows.data.training_set import TrainingContext, training_set
from flows.errors import TrialError, UserError
from flows.records import Example, Hit
from flows.stages.prepare import Prepared
from flows.stages.snapshot import Snapshot
from flows.store import digest
from flows.training_spec import TrainingSpec
from flows.trial import Trial

VERSION = 1
_UNDER_WAY = (trainer_pb2.JOB_STATE_QUEUED, trainer_pb2.JOB_STATE_RUNNING)


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
    final_loss: float
    trained_tokens: int
    training_s: float
    examples: int
    truncated: int
    masked: int
    short: int
    """Examples with fewer distractors than asked for."""


async def train(trial: Trial, prepared: Prepared, snapshot: Snapshot | None) -> dict[AdapterKey, TrainedAdapter]:
    """All adapters that arms of the spec use."""
    wanted = [
        AdapterKey(family, size, seed)
        for family in sorted({arm.adapter for arm in trial.spec.arms.values() if arm.adapter is not None})
        for size in trial.spec.training[family].sizes
        for seed in trial.spec.training[family].seeds
    ]
    if not wanted:
        return {}
    trial.progress.stage("train", len(wanted))
    adapters = await together(_one(trial, prepared, snapshot, key) for key in wanted)
    trial.progress.finish("train", f"{len(wanted)} adapters")
    return dict(zip(wanted, adapters, strict=True))


async def _one(trial: Trial, prepared: Prepared, snapshot: Snapshot | None, key: AdapterKey) -> TrainedAdapter:
    training = trial.spec.training[key.family]
    examples, short = _examples(trial, prepared, snapshot, training, key.size)
    rows, evaluation = _divided(trial, prepared, examples, key)
    rows_key, evaluation_key = digest(rows), digest(evaluation) if evaluation else None
    recipe = training.model_dump(mode="json", exclude={"model", "context", "sizes", "seeds"})
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
    known = _known(trial, address, key)
    if known is None:
        write = trial.store.write_lines
        spec = trainer_pb2.TrainingSpec(
            adapter_name=name,
            base=trial.loaded.base(training.model),
            dataset_uri=write("training-sets", rows_key, "train.jsonl", rows),
            evaluation_uri=write("training-sets", evaluation_key, "evaluation.jsonl", evaluation) if evaluation_key else "",
            seed=key.seed,
            **_method(training),
        )
        known = replace(await _job(trial, spec, address, key), short=short)
        trial.store.write_json("adapters", address, "adapter.json", asdict(known))
        trial.store.finish("adapters", address, inputs)
    trial.progress.advance("train", note=f"{key.family}-{key.size}-s{key.seed}")
    return known


def _divided(
    trial: Trial, prepared: Prepared, examples: Sequence[Example], key: AdapterKey
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and rows to evaluate on. Whole clusters, drawn by their names: the same in sets of every size."""
    share = trial.spec.training[key.family].evaluation
    clusters = {item.id: item.cluster for item in prepared.pool}
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in examples:
        turns = trial.template.turns(row.question, prepared.shown(row.passages), answer=row.answer)
        evaluates = place(trial.spec.data.seed, "evaluation", clusters[row.item]) < share
        rows[evaluates].append({"messages": turns})
    if share and not all(rows):
        raise UserError(
            f"training.{key.family}: of {len(examples)} training questions {len(rows[1])} would be kept for evaluation (share {share:g}, "
            "whole clusters): change evaluation, or train on more questions"
        )
    return rows


def _known(trial: Trial, address: str, key: AdapterKey) -> TrainedAdapter | None:
    if not trial.store.has("adapters", address):
        return None
    # Identical jobs of two families are trained once; the names are those of the asker.
    found = TrainedAdapter(**trial.store.read_json("adapters", address, "adapter.json"))
    if found.uri.startswith("/") and not (Path(found.uri) / "adapter_model.safetensors").is_file():
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
    given = {name: getattr(training, name) for name in _COURSE}
    course = trainer_pb2.Optimization(**{name: value for name, value in given.items() if value is not None})
    if training.method == "prompt_tuning":
        text = training.initial_text or None
        return {"prompt_tuning": trainer_pb2.PromptTuning(virtual_tokens=training.virtual_tokens, initial_text=text, optimization=course)}
    lora = {name: value for name, value in training.lora.model_dump().items() if value is not None}
    return {"sft": trainer_pb2.SupervisedFineTuning(lora=trainer_pb2.Lora(**lora), optimization=course)}


def _show(trial: Trial, job: trainer_pb2.TrainingJob, key: AdapterKey) -> None:
    progress = job.progress
    if progress.step_count:
        trial.progress.advance("train", 0, note=f"{key.family}-{key.size}-s{key.seed} step {progress.step}/{progress.step_count}")


async def _is_spent(clients: Clients, job: trainer_pb2.TrainingJob) -> bool:
    """Whether the job answered this request before and is no use now: it did not end well, or its adapter was deleted since."""
    if job.state in (trainer_pb2.JOB_STATE_FAILED, trainer_pb2.JOB_STATE_CANCELLED):
        return True
    if job.state != trainer_pb2.JOB_STATE_SUCCEEDED:
        return False
    try:
        await clients.trainer.GetAdapter(trainer_pb2.GetAdapterRequest(name=job.adapter), timeout=60)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return True
        raise
    return False


async def _job(trial: Trial, spec: trainer_pb2.TrainingSpec, address: str, key: AdapterKey) -> TrainedAdapter:
    async with trial.services.use("trainer") as clients:
        created = await clients.trainer.CreateTrainingJob(trainer_pb2.CreateTrainingJobRequest(spec=spec, request_id=address), timeout=120)
        job = created.job
        if await _is_spent(clients, job):
            again = trainer_pb2.CreateTrainingJobRequest(spec=spec)
            job = (await clients.trainer.CreateTrainingJob(again, timeout=120)).job
        while job.state in _UNDER_WAY:
            # A watch lasts no longer than the service lets any call last; training may.
            try:
                async for update in clients.trainer.WatchTrainingJob(trainer_pb2.WatchTrainingJobRequest(id=job.id)):
                    job = update.job
                    _show(trial, job, key)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
        if job.state != trainer_pb2.JOB_STATE_SUCCEEDED:
            state = trainer_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
            raise TrialError(f"training of {key.family}-{key.size}-s{key.seed} {state}: {job.error or 'no reason given'}")
        adapter = (await clients.trainer.GetAdapter(trainer_pb2.GetAdapterRequest(name=job.adapter), timeout=60)).adapter
    return TrainedAdapter(
        key.family,
        key.size,
        key.seed,
        adapter.name,
        adapter.uri,
        adapter.weights_sha256,
        adapter.final_loss,
        adapter.trained_tokens,
        adapter.training_s,
        adapter.dataset.example_count,
        adapter.dataset.truncated_count,
        adapter.dataset.masked_count,
        0,
    )
