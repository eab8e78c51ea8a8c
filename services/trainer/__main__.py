"""The trainer: `python -m services.trainer`, settings from TUNETRIAL_*. The only place where its real parts are chosen."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from opentelemetry import metrics
from tunetrial.trainer.v1 import trainer_pb2_grpc

from services.common import telemetry
from services.common.errors import TunetrialError
from services.common.object_store import VARIABLES
from services.common.server import Service, serve
from services.trainer.domain import AdapterFolder, Launcher
from services.trainer.folder import CheckpointFolders, own_folder
from services.trainer.hosted_launcher import ByMethod, HostedJobs
from services.trainer.inputs import FileInputs
from services.trainer.job_queue import JobQueue, Limits
from services.trainer.jobs import SqlJobStore
from services.trainer.local_launcher import LocalLauncher
from services.trainer.manifest import AdapterFiles
from services.trainer.meter import observe
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import Settings
from services.trainer.stored_adapters import StoredAdapters


async def main(settings: Settings) -> None:
    """Runs the service until it is told to stop."""
    with own_folder(settings.data_dir.resolve()) as data_dir:
        store = SqlJobStore(settings.database)
        launcher, adapters, leave = _place(settings, data_dir)
        hosted = None if settings.hosted is None else HostedJobs(settings.hosted, data_dir / "hosted")
        provider = "" if settings.hosted is None else settings.hosted.url
        inputs = FileInputs(settings.uri_roots, settings.models, provider=provider)
        limits = Limits(
            settings.slots, settings.max_queued, settings.threads, settings.checkpoint_s, settings.four_bit_on_cpu, settings.report_to
        )
        jobs = JobQueue(store, ByMethod(launcher, hosted), inputs, adapters, CheckpointFolders(data_dir / "checkpoints"), limits)
        observe(metrics.get_meter("tunetrial"), jobs.running)
        await store.open()

        async def start() -> None:
            if hosted is not None:
                hosted.open()
            await jobs.start()

        async def close() -> None:
            leave()
            await jobs.close()
            await store.close()

        add = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(jobs))
        await serve(Service("tunetrial.trainer.v1.TrainerService", add, close=close), settings, start)


def _place(settings: Settings, data_dir: Path) -> tuple[Launcher, AdapterFolder, Callable[[], None]]:
    """Where jobs run, where they publish, and what is to be done before the service lets go of them."""

    def published(local: AdapterFiles) -> AdapterFolder:
        return local if settings.store is None else StoredAdapters(settings.store, local)

    if settings.kubernetes is None:
        # Addresses and credentials; jobs get them where they need them only.
        variables = (*(() if settings.store is None else VARIABLES), *(f"{name.upper()}_" for name in settings.report_to))
        local = LocalLauncher(
            data_dir / "jobs", settings.threads, settings.processes, settings.warm_start, settings.cancel_grace_s, variables
        )
        return local, published(AdapterFiles(settings.adapters_folder)), lambda: None
    # Its library is needed nowhere else.
    from services.trainer.kubernetes_launcher import KubernetesLauncher, PodAdapters  # noqa: PLC0415

    cluster = KubernetesLauncher(settings.kubernetes, settings.cancel_grace_s)
    return cluster, published(PodAdapters(settings.adapters_folder, cluster)), cluster.leave


if __name__ == "__main__":
    chosen = Settings()
    telemetry.set_up("trainer", chosen)
    try:
        asyncio.run(main(chosen))
    except TunetrialError as error:
        sys.exit(f"trainer: {error.message}")
