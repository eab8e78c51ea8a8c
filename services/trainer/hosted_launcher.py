"""Jobs that a provider trains: no process, no device, no model library. Knows no queue.

Runs in the service itself, which may end and come back: the provider's jobs go on meanwhile and are found again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from services.common.errors import InvalidArgument, NotFound, TunetrialError, Unavailable
from services.trainer.domain import Launcher, Order, TrainingRun
from services.trainer.hosted_client import JOB, Provider
from services.trainer.hosted_ledger import Ledger, Record
from services.trainer.hosted_run import HostedRun, Place
from services.trainer.hosted_settings import HostedTraining, not_configured
from services.trainer.spec import TrainingSpec

_log = structlog.get_logger()
_ENDED = ("succeeded", "failed", "cancelled")
_CLOSE_S, _AGAIN_S = 5.0, 2.0


class HostedJobs:
    """Makes runs, and ends what was cancelled. Needs to be opened and closed."""

    def __init__(self, settings: HostedTraining, folder: Path) -> None:
        """Contacts nothing."""
        self._settings, self._ledger, self._provider = settings, Ledger(folder), Provider(settings)
        self._place = Place(self._provider, self._ledger, settings, asyncio.Lock())
        self._cancels: dict[str, asyncio.Task[None]] = {}

    def open(self) -> None:
        """Goes on with what an earlier service was told to cancel."""
        self._ledger.clear()
        for record in self._ledger.jobs():
            if record.cancelled:
                self._cancel(record.job_id)

    def launch(self, order: Order) -> HostedRun:
        """Begins or goes on with a job."""
        return HostedRun(self._place, order, partial(self._cancel, order.job_id))

    def drop(self, job_id: str) -> None:
        """Begins to cancel what an earlier service may have begun."""
        record = self._ledger.job(job_id)
        if record.provider_job or record.sent:
            self._ledger.write_job(replace(record, cancelled=True))
            self._cancel(job_id)

    async def close(self) -> None:
        """Closes the connections; what is not cancelled yet, the next service cancels."""
        tasks = list(self._cancels.values())
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._provider.close()

    def _cancel(self, job_id: str) -> asyncio.Task[None]:
        task = self._cancels[job_id] = asyncio.create_task(self._cancelled(job_id))
        task.add_done_callback(lambda _: self._cancels.pop(job_id, None))
        return task

    async def _cancelled(self, job_id: str) -> None:
        """Returns once no job of this id goes on at the provider, however long that is away."""
        since, noted = time.time(), ""
        while True:
            try:
                record = self._ledger.job(job_id)
                found = [record.provider_job] if record.provider_job else await self._unanswered(record)
                for id_ in found:
                    await self._end(id_)
                if found or time.time() >= since + self._settings.settle_s:
                    self._ledger.forget_job(job_id)
                    return
            except Unavailable as error:
                if error.message != noted:
                    _log.warning("a job cannot be cancelled at its provider yet", job=job_id, why=error.message)
                    noted = error.message
            except TunetrialError as error:
                _log.error("a job cannot be cancelled at its provider: do it there", job=job_id, why=error.message)
                return
            await asyncio.sleep(min(_AGAIN_S, self._settings.poll_s))

    async def _unanswered(self, record: Record) -> list[str]:
        """Jobs of a request whose answer was lost."""
        jobs = await self._provider.find_jobs(lambda job: job.metadata.get(JOB) == record.job_id, **{JOB: record.job_id})
        return [job.id for job in jobs]

    async def _end(self, id_: str) -> None:
        try:
            await self._provider.cancel(id_)
        except NotFound:
            return
        except InvalidArgument:
            if (await self._provider.job(id_)).status not in _ENDED:
                raise
        _log.info("job was cancelled at its provider", provider_job=id_)


class ByMethod:
    """Hosted jobs to a provider, all others to where jobs run otherwise. Needs to be closed."""

    def __init__(self, here: Launcher, hosted: HostedJobs | None) -> None:
        self._here, self._hosted = here, hosted

    @property
    def has_cuda(self) -> bool:
        """Whether jobs find a CUDA device."""
        return self._here.has_cuda

    @property
    def processes(self) -> int:
        """How many share the batch of a job."""
        return self._here.processes

    def takes_slot(self, spec: TrainingSpec) -> bool:
        """A provider has places of its own."""
        return not spec.hosted and self._here.takes_slot(spec)

    async def launch(self, order: Order) -> TrainingRun:
        """Starts a job. May be cancelled. Raises FailedPrecondition HOSTED_NOT_CONFIGURED."""
        if not order.spec.hosted:
            return await self._here.launch(order)
        if self._hosted is None:
            raise not_configured()
        return self._hosted.launch(order)

    def drop(self, job_id: str) -> None:
        """Begins to end what is left of a job that was not launched here."""
        self._here.drop(job_id)
        if self._hosted is not None:
            self._hosted.drop(job_id)

    async def close(self) -> None:
        """Closes both."""
        await self._here.close()
        if self._hosted is not None:
            await self._hosted.close()
