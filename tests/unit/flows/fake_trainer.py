"""A trainer in memory that counts what it trains: the evaluation loss follows from the settings alone."""

# ruff: noqa: N802  rpc names are the contract's

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tunetrial.trainer.v1 import trainer_pb2 as pb
from tunetrial.trainer.v1 import trainer_pb2_grpc


@dataclass
class FakeTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Jobs of a rank in `failing` fail; one in `refused` is not begun; after `lasts` jobs it is away, until that is set anew."""

    folder: Path
    failing: tuple[int, ...] = ()
    why: str = "the loss is no number any more"
    refused: tuple[int, ...] = ()
    lasts: int = 10**9
    tells_loss: bool = True
    trained: list[pb.TrainingSpec] = field(default_factory=list)
    """What was trained, in order."""
    jobs: dict[str, pb.TrainingJob] = field(default_factory=dict)

    async def CreateTrainingJob(self, request: pb.CreateTrainingJobRequest, context: Any) -> pb.CreateTrainingJobResponse:
        spec, name = request.spec, request.spec.adapter_name
        if self._rank(spec) in self.refused:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the batch cannot be divided")
        if name not in self.jobs or self.jobs[name].state == pb.JOB_STATE_FAILED:
            if self.lasts <= 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            self.lasts -= 1
            self.trained.append(spec)
            self.jobs[name] = pb.TrainingJob(id=name, spec=spec, state=pb.JOB_STATE_RUNNING)
        return pb.CreateTrainingJobResponse(job=self.jobs[name])

    async def WatchTrainingJob(self, request: pb.WatchTrainingJobRequest, context: Any) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        job = self.jobs[request.id]
        job.start_time.CopyFrom(Timestamp(seconds=1000))
        job.end_time.CopyFrom(Timestamp(seconds=1900))
        if self._rank(job.spec) in self.failing:
            job.state, job.error = pb.JOB_STATE_FAILED, self.why
        else:
            job.state, job.adapter = pb.JOB_STATE_SUCCEEDED, job.spec.adapter_name
        yield pb.WatchTrainingJobResponse(job=job)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Any) -> pb.GetAdapterResponse:
        spec, folder = self.jobs[request.name].spec, self.folder / request.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").touch()
        adapter = pb.Adapter(name=request.name, uri=str(folder), training_s=1800.0, trained_tokens=1000)
        if spec.evaluation_uri and self.tells_loss:
            course, rank = self._course(spec), self._rank(spec)
            adapter.evaluation_loss = abs(math.log10(course.learning_rate) + 3) + 1 / rank + 0.1 * course.epochs
        return pb.GetAdapterResponse(adapter=adapter)

    @staticmethod
    def _course(spec: pb.TrainingSpec) -> pb.Optimization:
        return spec.dpo.optimization if spec.HasField("dpo") else spec.sft.optimization

    @staticmethod
    def _rank(spec: pb.TrainingSpec) -> int:
        return spec.dpo.lora.rank if spec.HasField("dpo") else spec.sft.lora.rank


@asynccontextmanager
async def serving(fake: FakeTrainer) -> AsyncIterator[str]:
    """Its address while it runs."""
    server = grpc.aio.server()
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)
