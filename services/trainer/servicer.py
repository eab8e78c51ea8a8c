"""Wire to domain and back. The only module of this service that sees *_pb2; holds no rule of its own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tunetrial.trainer.v1 import trainer_pb2, trainer_pb2_grpc

from services.common.errors import InvalidArgument
from services.trainer.domain import Adapter, DatasetReport, Job, JobState, Progress
from services.trainer.job_queue import JobQueue
from services.trainer.spec import (
    DPO_RATE,
    FULL_RATE,
    PROMPT_TUNING_RATE,
    SFT_RATE,
    DirectPreferenceOptimization,
    FullFineTuning,
    HostedFineTuning,
    Lora,
    Method,
    Optimization,
    PromptTuning,
    SupervisedFineTuning,
    TrainingSpec,
)

_Context = grpc.aio.ServicerContext[Any, Any]
_STATES = {
    JobState.QUEUED: trainer_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: trainer_pb2.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: trainer_pb2.JOB_STATE_SUCCEEDED,
    JobState.FAILED: trainer_pb2.JOB_STATE_FAILED,
    JobState.CANCELLED: trainer_pb2.JOB_STATE_CANCELLED,
}
_FILTERS = {wire: state for state, wire in _STATES.items()} | {trainer_pb2.JOB_STATE_UNSPECIFIED: None}


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """The rpcs of the contract."""

    def __init__(self, jobs: JobQueue) -> None:
        self._jobs = jobs

    async def CreateTrainingJob(
        self, request: trainer_pb2.CreateTrainingJobRequest, context: _Context
    ) -> trainer_pb2.CreateTrainingJobResponse:
        """Queues a job, or finds the one that does the same."""
        job = await self._jobs.create(to_spec(request.spec), request.request_id)
        return trainer_pb2.CreateTrainingJobResponse(job=from_job(job))

    async def GetTrainingJob(self, request: trainer_pb2.GetTrainingJobRequest, context: _Context) -> trainer_pb2.GetTrainingJobResponse:
        """One job."""
        return trainer_pb2.GetTrainingJobResponse(job=from_job(await self._jobs.get(request.id)))

    async def ListTrainingJobs(
        self, request: trainer_pb2.ListTrainingJobsRequest, context: _Context
    ) -> trainer_pb2.ListTrainingJobsResponse:
        """A page of jobs."""
        if request.state not in _FILTERS:
            raise InvalidArgument("STATE_UNKNOWN", "state {state} is none of JobState", state=request.state, field="state")
        size = request.page_size if request.HasField("page_size") else None
        jobs, token = await self._jobs.page(_FILTERS[request.state], size, request.page_token)
        return trainer_pb2.ListTrainingJobsResponse(jobs=[from_job(job) for job in jobs], next_page_token=token)

    async def CancelTrainingJob(
        self, request: trainer_pb2.CancelTrainingJobRequest, context: _Context
    ) -> trainer_pb2.CancelTrainingJobResponse:
        """Ends a job."""
        return trainer_pb2.CancelTrainingJobResponse(job=from_job(await self._jobs.cancel(request.id)))

    async def WatchTrainingJob(
        self, request: trainer_pb2.WatchTrainingJobRequest, context: _Context
    ) -> AsyncIterator[trainer_pb2.WatchTrainingJobResponse]:
        """A job at each change."""
        async for job in self._jobs.watch(request.id):
            yield trainer_pb2.WatchTrainingJobResponse(job=from_job(job))

    async def ListAdapters(self, request: trainer_pb2.ListAdaptersRequest, context: _Context) -> trainer_pb2.ListAdaptersResponse:
        """A page of adapters."""
        size = request.page_size if request.HasField("page_size") else None
        adapters, token = await self._jobs.adapters(request.base, size, request.page_token)
        return trainer_pb2.ListAdaptersResponse(adapters=[from_adapter(adapter) for adapter in adapters], next_page_token=token)

    async def GetAdapter(self, request: trainer_pb2.GetAdapterRequest, context: _Context) -> trainer_pb2.GetAdapterResponse:
        """One adapter."""
        return trainer_pb2.GetAdapterResponse(adapter=from_adapter(await self._jobs.adapter(request.name)))


def to_spec(spec: trainer_pb2.TrainingSpec) -> TrainingSpec:
    """Raises InvalidArgument for settings out of range."""
    method = spec.WhichOneof("method")
    if method is None:
        raise InvalidArgument("FIELD_MISSING", "set {field}: how to train", field="spec.sft")
    try:
        how = _METHODS[method](getattr(spec, method))
    except InvalidArgument as error:
        metadata = error.metadata | {"field": f"spec.{method}.{error.metadata['field']}"}
        raise InvalidArgument(error.reason, "{field} {message}", **metadata) from error
    # The provider's name for a base may be given with the method too.
    base = spec.hosted.model or spec.base if method == "hosted" else spec.base
    return TrainingSpec(spec.adapter_name, base, spec.dataset_uri, spec.evaluation_uri, spec.seed, how)


def _to_lora(lora: trainer_pb2.Lora) -> Lora:
    return Lora.given(**_set_fields(lora))


def _to_course(course: trainer_pb2.Optimization, usual_rate: float = SFT_RATE) -> Optimization:
    return Optimization.given(**_set_fields(course), usual_rate=usual_rate)


def _to_dpo(dpo: trainer_pb2.DirectPreferenceOptimization) -> DirectPreferenceOptimization:
    beta, course = dpo.beta if dpo.HasField("beta") else None, _to_course(dpo.optimization, usual_rate=DPO_RATE)
    return DirectPreferenceOptimization.given(_to_lora(dpo.lora), course, beta)


def _to_prompt_tuning(tuning: trainer_pb2.PromptTuning) -> PromptTuning:
    tokens = tuning.virtual_tokens if tuning.HasField("virtual_tokens") else None
    return PromptTuning.given(_to_course(tuning.optimization, usual_rate=PROMPT_TUNING_RATE), tokens, tuning.initial_text)


_METHODS: Mapping[str, Callable[[Any], Method]] = {
    "sft": lambda sft: SupervisedFineTuning(_to_lora(sft.lora), _to_course(sft.optimization)),
    "full": lambda full: FullFineTuning(_to_course(full.optimization, usual_rate=FULL_RATE)),
    "dpo": _to_dpo,
    "prompt_tuning": _to_prompt_tuning,
    "hosted": lambda hosted: HostedFineTuning.given(hosted.hyperparameters),
}


def _set_fields(message: Message) -> dict[str, Any]:
    """Fields that were sent, by name; the domain's parameters bear the same names."""
    return {descriptor.name: value for descriptor, value in message.ListFields()}


def from_spec(spec: TrainingSpec) -> trainer_pb2.TrainingSpec:
    """With every default filled in."""
    return trainer_pb2.TrainingSpec(
        adapter_name=spec.adapter_name,
        base=spec.base,
        dataset_uri=spec.dataset_uri,
        evaluation_uri=spec.evaluation_uri,
        seed=spec.seed,
        **_from_method(spec.method),
    )


def _from_method(method: Method) -> dict[str, Any]:
    if isinstance(method, HostedFineTuning):
        return {method.kind: trainer_pb2.HostedFineTuning(hyperparameters=method.hyperparameters)}
    # Settings bear the same names on both sides; None is what stays unset.
    course = trainer_pb2.Optimization(**asdict(method.optimization))
    if isinstance(method, PromptTuning):
        how: Any = trainer_pb2.PromptTuning(
            virtual_tokens=method.virtual_tokens, initial_text=method.initial_text or None, optimization=course
        )
    elif isinstance(method, FullFineTuning):
        how = trainer_pb2.FullFineTuning(optimization=course)
    elif isinstance(method, DirectPreferenceOptimization):
        how = trainer_pb2.DirectPreferenceOptimization(lora=_from_lora(method.lora), optimization=course, beta=method.beta)
    else:
        how = trainer_pb2.SupervisedFineTuning(lora=_from_lora(method.lora), optimization=course)
    return {method.kind: how}


def _from_lora(lora: Lora) -> trainer_pb2.Lora:
    return trainer_pb2.Lora(**asdict(lora))


def from_job(job: Job) -> trainer_pb2.TrainingJob:
    """A job on the wire."""
    return trainer_pb2.TrainingJob(
        id=job.id,
        spec=from_spec(job.spec),
        state=_STATES[job.state],
        progress=_from_progress(job.progress),
        dataset=None if job.dataset is None else _from_report(job.dataset),
        error=job.error,
        adapter=job.adapter,
        create_time=_from_time(job.create_time),
        start_time=None if job.start_time is None else _from_time(job.start_time),
        end_time=None if job.end_time is None else _from_time(job.end_time),
    )


def from_adapter(adapter: Adapter) -> trainer_pb2.Adapter:
    """An adapter on the wire."""
    return trainer_pb2.Adapter(
        name=adapter.name,
        uri=adapter.uri,
        base=adapter.base,
        base_sha256=adapter.base_sha256,
        weights_sha256=adapter.weights_sha256,
        dataset_sha256=adapter.dataset_sha256,
        job_id=adapter.job_id,
        final_loss=math.nan if adapter.final_loss is None else adapter.final_loss,
        trained_tokens=adapter.trained_tokens,
        training_s=adapter.training_s,
        dataset=_from_report(adapter.dataset),
        library_versions=adapter.library_versions,
        create_time=_from_time(adapter.create_time),
        evaluation_loss=adapter.evaluation_loss,
    )


def _from_progress(progress: Progress) -> trainer_pb2.TrainingProgress:
    return trainer_pb2.TrainingProgress(
        step=progress.step,
        step_count=progress.step_count,
        loss=progress.loss,
        evaluation_loss=progress.evaluation_loss,
        tokens_per_second=progress.tokens_per_second,
        remaining_s=progress.remaining_s,
        gradient_norm=progress.gradient_norm,
        learning_rate=progress.learning_rate,
        peak_memory_mib=progress.peak_memory_mib,
        checkpoint_step=progress.checkpoint_step,
    )


def _from_report(report: DatasetReport) -> trainer_pb2.DatasetReport:
    return trainer_pb2.DatasetReport(
        example_count=report.example_count,
        truncated_count=report.truncated_count,
        masked_count=report.masked_count,
        token_count=report.token_count,
        answer_token_count=report.answer_token_count,
    )


def _from_time(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
