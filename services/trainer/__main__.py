"""The trainer: `python -m services.trainer`, settings from TUNETRIAL_*. The only place where its real parts are chosen."""

from __future__ import annotations

import asyncio
from functools import partial

from tunetrial.trainer.v1 import trainer_pb2_grpc

from services.common import telemetry
from services.common.server import Service, serve
from services.trainer.folder import own_folder
from services.trainer.inputs import FileInputs
from services.trainer.job_queue import JobQueue, Limits
from services.trainer.jobs import SqlJobStore
from services.trainer.local_launcher import LocalLauncher
from services.trainer.manifest import AdapterFiles
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import Settings


async def main(settings: Settings) -> None:
    """Runs the service until it is told to stop."""
    with own_folder(settings.data_dir.resolve()) as data_dir:
        adapters_dir, store = data_dir / "adapters", SqlJobStore(settings.database)
        launcher = LocalLauncher(data_dir / "jobs", settings.threads, settings.warm_start, settings.cancel_grace_s)
        inputs = FileInputs(settings.uri_roots, settings.models)
        limits = Limits(settings.slots, settings.max_queued, settings.threads)
        jobs = JobQueue(store, launcher, inputs, AdapterFiles(adapters_dir), str(adapters_dir), limits)
        await store.open()

        async def close() -> None:
            await jobs.close()
            await store.close()

        add = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, TrainerServicer(jobs))
        await serve(Service("tunetrial.trainer.v1.TrainerService", add, close=close), settings, jobs.start)


if __name__ == "__main__":
    chosen = Settings()
    telemetry.set_up("trainer", chosen)
    asyncio.run(main(chosen))
