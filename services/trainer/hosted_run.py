"""One hosted job: its data sent, its job at the provider found or made, watched, and what came of it published. Knows no queue.

Before anything that costs money is asked for it is written down, and the provider's own list is looked through first: a job there bears the
hash of its work in its metadata. So whatever is killed and begun again, by whichever trainer, the same work is paid for once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from services.common.errors import FailedPrecondition, TunetrialError, Unavailable
from services.trainer.domain import DatasetRead, Event, Exited, Failed, Order, Progress, Progressed
from services.trainer.failures import words_of_error
from services.trainer.hosted_adapter import ROWS, dataset_of, progress_of, publish
from services.trainer.hosted_client import JOB, WORK, Metric, Provider, ProviderJob
from services.trainer.hosted_data import write_chat_file
from services.trainer.hosted_errors import NotTaken
from services.trainer.hosted_ledger import Ledger, Record
from services.trainer.hosted_settings import HostedTraining
from services.trainer.inputs import file_sha256
from services.trainer.spec import HostedFineTuning

_log = structlog.get_logger()
_Answer = TypeVar("_Answer")

_DEAD = ("failed", "cancelled")
_SUFFIX_LENGTH = 64
_STOP_S = 4.0
_CLOCKS_APART_S = 60.0
_LOOK_S = 1.0
_LEAST_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """What all hosted jobs share."""

    provider: Provider
    ledger: Ledger
    settings: HostedTraining
    uploading: asyncio.Lock
    """Held while a file is looked for and sent, so that two jobs on the same rows send them once."""


class HostedRun:
    """Begins at once. `cancel` ends the provider's job of this one, trying on until that is done."""

    def __init__(self, place: Place, order: Order, cancel: Callable[[], asyncio.Task[None]]) -> None:
        self._place, self._order, self._cancel = place, order, cancel
        self._provider, self._ledger, self._settings = place.provider, place.ledger, place.settings
        self._told: asyncio.Queue[Event | None] = asyncio.Queue()
        self._stopped: asyncio.Event | None = None
        self._gone = asyncio.Event()
        self._noted = ""
        self._working = asyncio.create_task(self._work())
        self._working.add_done_callback(lambda _: self._told.put_nowait(None))

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last is Exited. To be read once."""
        try:
            while (event := await self._told.get()) is not None:
                yield event
            if self._stopped is not None:
                await self._stopped.wait()
            yield Exited(None if self._working.cancelled() else self._working.result())
        finally:
            self._gone.set()
            self._working.cancel()

    async def stop(self) -> None:
        """Cancels the provider's job as well. Where that takes too long it is done afterwards, by the next service if need be."""
        self._stopped = asyncio.Event()
        try:
            self._working.cancel()
            await asyncio.wait((self._working,))
            record = self._ledger.job(self._order.job_id)
            if record.provider_job or record.sent:
                self._ledger.write_job(replace(record, cancelled=True))
                done, _ = await asyncio.wait((self._cancel(),), timeout=_STOP_S)
                if not done:
                    _log.warning("a cancelled job is not cancelled at its provider yet", job=self._order.job_id)
        finally:
            self._stopped.set()
        await self._gone.wait()

    async def leave(self) -> None:
        """Lets go: the provider's job goes on, and the next service finds it."""
        self._working.cancel()
        await self._gone.wait()

    async def _work(self) -> int:
        job_id = ""
        if refusal := self._refusal():
            # The record stays: what is at the provider is still to be cancelled, or found again.
            self._told.put_nowait(Failed(refusal))
            return 1
        try:
            job = await self._found() or await self._made()
            job_id = job.id
            self._told.put_nowait(DatasetRead(dataset_of(job)))
            done, told = await self._follow(job)
            # Not in a thread, which would go on when the job is cancelled here; the files are small.
            publish(self._order, done, told)
        except Exception as error:
            where = f" (job {job_id} of the provider)" if job_id else ""
            self._told.put_nowait(Failed(f"{words_of_error(error)}{where}"))
            if not isinstance(error, TunetrialError):
                _log.exception("a hosted job failed", job=self._order.job_id)
            self._ledger.forget_job(self._order.job_id)
            return 1
        self._ledger.forget_job(self._order.job_id)
        return 0

    def _refusal(self) -> str:
        """Why nothing is asked of the provider; empty where nothing speaks against it."""
        if self._ledger.job(self._order.job_id).cancelled:
            return "the job was cancelled: create it again to train anew"
        created_for, url = self._order.inputs.provider, self._settings.url
        return "" if created_for == url else f"the job is one for the provider {created_for}, and TUNETRIAL_HOSTED names {url} by now"

    async def _found(self) -> ProviderJob | None:
        """The provider's job of this work, made by an earlier attempt, an earlier job, or another trainer."""
        record = self._ledger.job(self._order.job_id)
        if record.provider_job:
            return await self._patiently(lambda: self._provider.job(record.provider_job))
        return await self._looked_for(record, record.sent)

    async def _looked_for(self, record: Record, since: float) -> ProviderJob | None:
        """Looked for as long as a request that was sent may still be at work; `since` is when it was last heard of."""
        while True:
            job = await self._patiently(lambda: self._in_list(record))
            if job is not None:
                self._ledger.write_job(Record(record.job_id, job.id))
                _log.info("job is at its provider already", job=record.job_id, provider_job=job.id, status=job.status)
                return job
            if time.time() >= since + self._settings.settle_s:
                return None
            await asyncio.sleep(min(_LOOK_S, self._settings.poll_s))

    async def _in_list(self, record: Record) -> ProviderJob | None:
        cancelled = [each for each in self._ledger.jobs() if each.cancelled]
        unwanted = {each.provider_job for each in cancelled} | {each.job_id for each in cancelled}

        def alive(job: ProviderJob) -> bool:
            return job.status not in _DEAD and not unwanted & {job.id, job.metadata.get(JOB, job.id)}

        jobs = await self._provider.find_jobs(alive, **{WORK: self._order.work})
        for job in jobs:
            # What came of it may have been deleted since.
            if job.metadata.get(WORK) == self._order.work and (job.status != "succeeded" or await self._provider.has_model(job.model)):
                return job
        since = record.sent - _CLOCKS_APART_S
        unnamed = [job.id for job in jobs if not job.metadata and record.training_file == job.training_file and job.created >= since]
        if unnamed:
            message = (
                "the answer to a request for a job was lost, and the provider {url} keeps no metadata by which to tell whether one of its "
            )
            message += "jobs {jobs} is this one: look there, cancel what nobody wants, then create the job again"
            raise FailedPrecondition("PROVIDER_JOB_UNCERTAIN", message, url=self._settings.url, jobs=", ".join(unnamed))
        return None

    async def _made(self) -> ProviderJob:
        order, method = self._order, self._order.spec.method
        assert isinstance(method, HostedFineTuning)  # noqa: S101  the launcher takes no others
        inputs = order.inputs
        training, rows = await self._file(inputs.dataset_path, inputs.dataset_sha256, "spec.dataset_uri")
        validation = None
        if inputs.evaluation_path is not None:
            validation, _ = await self._file(inputs.evaluation_path, inputs.evaluation_sha256, "spec.evaluation_uri")
        suffix = order.spec.adapter_name[:_SUFFIX_LENGTH]
        hyperparameters = {name: json.loads(value) for name, value in method.hyperparameters.items()}
        metadata = {WORK: order.work, JOB: order.job_id, ROWS: str(rows)}
        while True:
            record = Record(order.job_id, sent=time.time(), training_file=training)
            self._ledger.write_job(record)
            try:
                job = await self._provider.create(order.spec.base, training, validation, suffix, order.spec.seed, hyperparameters, metadata)
            except NotTaken as error:
                self._ledger.forget_job(order.job_id)
                await self._pause(error)
            except Unavailable as error:
                self._note(error)
                found = await self._looked_for(record, time.time())
                if found is not None:
                    return found
            else:
                self._ledger.write_job(Record(order.job_id, job.id))
                _log.info("job was given to its provider", job=order.job_id, provider_job=job.id)
                # As it was sent: not every provider says it again.
                return replace(job, metadata=metadata)

    async def _file(self, path: str, sha256: str | None, field: str) -> tuple[str, int]:
        """The provider's id of a file of rows, which is sent unless it is there, and how many rows it has."""
        scratch = self._ledger.scratch(self._order.job_id)
        try:
            if await asyncio.to_thread(file_sha256, Path(path)) != sha256:
                message = "{path} has changed since the job was created: create it again"
                raise FailedPrecondition("DATASET_CHANGED", message, path=path, field=field)
            chat = await asyncio.to_thread(write_chat_file, Path(path), scratch, field)
            async with self._place.uploading:
                id_ = self._ledger.file(self._settings.url, chat.name)
                if not id_ or not await self._patiently(lambda: self._provider.has_file(id_)):

                    async def sent() -> str:
                        # Looked for each time: the answer to sending it may have been lost.
                        return await self._provider.find_file(chat.name, chat.size) or await self._provider.upload(scratch, chat.name)

                    id_ = await self._patiently(sent)
                    self._ledger.write_file(self._settings.url, chat.name, id_)
            return id_, chat.row_count
        finally:
            scratch.unlink(missing_ok=True)

    async def _follow(self, job: ProviderJob) -> tuple[ProviderJob, dict[int, Metric]]:
        """The job once it has succeeded, and what was told of its steps. Raises FailedPrecondition when it never will."""
        metrics: dict[str, Metric | None] = {}
        shown = Progress()
        while True:
            now = await self._patiently(lambda: self._provider.job(job.id))
            try:
                metrics |= await self._provider.metrics(job.id, metrics)
            except TunetrialError as error:  # nice to have
                self._note(error)
            told = {metric.step: metric for metric in metrics.values() if metric is not None}
            progress = progress_of(now, told)
            if progress != shown:
                self._told.put_nowait(Progressed(progress))
                shown = progress
            if now.status == "succeeded" and now.model:
                return replace(now, metadata=now.metadata or job.metadata), told
            if now.status in _DEAD:
                raise self._dead(now)
            await asyncio.sleep(self._settings.poll_s)

    def _dead(self, job: ProviderJob) -> FailedPrecondition:
        if job.status == "cancelled":
            return FailedPrecondition("HOSTED_CANCELLED", "the job was cancelled at the provider: create it again to train anew")
        why = job.error or "it gives no reason"
        return FailedPrecondition("HOSTED_FAILED", "the provider {url} could not train it: {why}", url=self._settings.url, why=why)

    async def _patiently(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """The answer, however long the provider is away."""
        while True:
            try:
                return await ask()
            except Unavailable as error:
                await self._pause(error)

    async def _pause(self, error: Unavailable) -> None:
        self._note(error)
        await asyncio.sleep(max(_LEAST_PAUSE_S, float(error.metadata.get("retry_after_s", self._settings.poll_s))))

    def _note(self, error: TunetrialError) -> None:
        if error.message != self._noted:
            _log.warning("a hosted job waits", job=self._order.job_id, why=error.message)
            self._noted = error.message
