"""The trainer: `python -m services.trainer`, settings from TUNETRIAL_*. The only place where its real parts are chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from opentelemetry import metrics
from tunetrial.trainer.v1 import trainer_pb2_grpc

from services.common import telemetry
from services.common.server import Service, serve
from services.trainer.domain import Launcher
from services.trainer.folder import CheckpointFolders, own_folder
from services.trainer.inputs import FileInputs
from services.trainer.job_queue import JobQueue, Limits
from services.trainer.jobs import SqlJobStore
from services.trainer.local_launcher import LocalLauncher
from services.trainer.manifest import AdapterFiles
from services.trainer.meter import observe
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import Settings


async def main(settings: Settings) -> None:
    """Runs the service until it is told to stop."""
    with own_folder(settings.data_dir.resolve()) as data_dir:
        store = SqlJobStore(settings.database)
        launcher, adapters, leave = _place(settings, data_dir)
        inputs = FileInputs(settings.uri_roots, settings.models)
        limits = Limits(settings.slots, settings.max_queued, settings.threads, settings.checkpoint_s)
        jobs = JobQueue(store, launcher, inputs, adapters, CheckpointFolders(data_dir / "checkpoints"), limits)
        observe(metrics.get_meter("tunetrial"), jobs.running)
        await store.open()

        async def close() -> None:
            leave()
            await jobs.close()
            await store.close()

        add = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(jobs))
        await serve(Service("tunetrial.trainer.v1.TrainerService", add, close=close), settings, jobs.start)


def _place(settings: Settings, data_dir: Path) -> tuple[Launcher, AdapterFiles, Callable[[], None]]:
    """Where jobs run, where they publish, and what is to be done before the service lets go of them."""
    if settings.kubernetes is None:
        local = LocalLauncher(data_dir / "jobs", settings.threads, settings.processes, settings.warm_start, settings.cancel_grace_s)
        return local, AdapterFiles(data_dir / "adapters"), lambda: None
    # Its library is needed nowhere else.
    from services.trainer.kubernetes_launcher import KubernetesLauncher, PodAdapters  # noqa: PLC0415

    cluster = KubernetesLauncher(settings.kubernetes, settings.cancel_grace_s)
    return cluster, PodAdapters(data_dir / "adapters", cluster), cluster.leave


if __name__ == "__main__":
    chosen = Settings()
    telemetry.set_up("trainer", chosen)
    asyncio.run(main(chosen))
