"""One training job: asked of the trainer, watched to its end. Knows neither what it trains on nor what becomes of the adapter."""

from __future__ import annotations

import grpc
from tunetrial.trainer.v1 import trainer_pb2

from flows.clients import Clients
from flows.errors import TrialError
from flows.trial import Trial

_UNDER_WAY = (trainer_pb2.JOB_STATE_QUEUED, trainer_pb2.JOB_STATE_RUNNING)


class TrainingFailed(TrialError):
    """A job that failed by itself; `why` is in the trainer's words, `seconds` is how long it ran."""

    def __init__(self, message: str, why: str, seconds: float) -> None:
        super().__init__(message)
        self.why, self.seconds = why, seconds


async def adapter_of_job(trial: Trial, spec: trainer_pb2.TrainingSpec, address: str, name: str, stage: str) -> trainer_pb2.Adapter:
    """The adapter that the job makes, or made before; `address` names the work, `name` and `stage` tell people of it.

    Raises TrainingFailed when the job fails, TrialError when somebody cancelled it.
    """
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
                    _show(trial, job, name, stage)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
        if job.state != trainer_pb2.JOB_STATE_SUCCEEDED:
            state = trainer_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
            said = f"training of {name} {state}: {job.error or 'no reason given'}"
            if job.state != trainer_pb2.JOB_STATE_FAILED:
                raise TrialError(said)
            began = job.start_time if job.HasField("start_time") else job.end_time
            raise TrainingFailed(said, job.error, (job.end_time.ToDatetime() - began.ToDatetime()).total_seconds())
        return (await clients.trainer.GetAdapter(trainer_pb2.GetAdapterRequest(name=job.adapter), timeout=60)).adapter


def _show(trial: Trial, job: trainer_pb2.TrainingJob, name: str, stage: str) -> None:
    progress = job.progress
    if progress.step_count:
        trial.progress.advance(stage, 0, note=f"{name} step {progress.step}/{progress.step_count}")


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
