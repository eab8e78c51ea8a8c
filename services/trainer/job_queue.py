"""The life of jobs: created once, queued, run in slots, watched, cancelled, taken up after a restart. Knows no wire and no process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, auto

import structlog

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.trainer.adapter_shelf import AdapterShelf, Found
from services.trainer.domain import (
    Adapter,
    AdapterFolder,
    Checkpoints,
    DatasetRead,
    Exited,
    Failed,
    InputReader,
    Inputs,
    Interrupted,
    Job,
    JobState,
    JobStore,
    Launcher,
    Order,
    Progress,
    Progressed,
    Started,
    TrainingRun,
)
from services.trainer.failures import words_of_error, words_of_exit
from services.trainer.paging import page_size, page_start, page_token
from services.trainer.records import work_hash
from services.trainer.spec import TrainingSpec

_log = structlog.get_logger()
_REQUEST_ID_LENGTH = 128
_RETRY_S = 2.0


class _Stop(Enum):
    CANCEL = auto()
    """The job is to end for good."""
    SHUTDOWN = auto()
    """The service ends; the job is to go on after it."""


@dataclass(slots=True)
class _Active:
    """A job in a slot."""

    job: Job
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    why: _Stop | None = None
    task: asyncio.Task[None] | None = None
    resumes: bool = False
    """Whether its process, should it be gone without a word, would go on from a later step in another one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once."""

    slots: int
    max_queued: int
    threads: int
    checkpoint_s: float
    four_bit_on_cpu: bool = False
    report_to: tuple[str, ...] = ()


class JobQueue:
    """All jobs of one service. Start it before use and close it after."""

    def __init__(
        self,
        store: JobStore,
        launcher: Launcher,
        inputs: InputReader,
        adapters: AdapterFolder,
        checkpoints: Checkpoints,
        limits: Limits,
    ) -> None:
        self._store, self._launcher, self._inputs = store, launcher, inputs
        self._adapters, self._shelf = adapters, AdapterShelf(adapters)
        self._checkpoints, self._limits = checkpoints, limits
        self._active: dict[str, _Active] = {}
        self._changed: dict[str, asyncio.Event] = {}
        # Held while a state is read and changed in one go; never while a job trains or files are hashed.
        self._lock = asyncio.Lock()
        self._closing = False

    async def start(self) -> None:
        """Takes up what an earlier service left: jobs that were running go on from their checkpoints, unless they had published."""
        # Callers come already: none of these jobs may be cancelled, or another begun, until it is known what became of them.
        async with self._lock:
            await self._shelf.clear()
            for job in await self._store.in_state(JobState.RUNNING):
                adapter = await self._shelf.made(job)
                if adapter is not None:
                    await self._finish(job, adapter)
                else:
                    await self._store.update(_queued_again(job))
                    _log.info("job goes on after a restart", job=job.id, adapter=job.spec.adapter_name)
        await self._fill()

    async def close(self) -> None:
        """Ends running jobs and puts them back into the queue."""
        async with self._lock:
            self._closing = True
            tasks = [self._stop(active, _Stop.SHUTDOWN) for active in self._active.values()]
        await asyncio.gather(*tasks)
        await self._launcher.close()

    async def create(self, spec: TrainingSpec, request_id: str) -> Job:
        """The job for `spec`: a new one, or the one that did or does the same work.

        Raises InvalidArgument, FailedPrecondition CUDA_NEEDED, AlreadyExists REQUEST_ID_REUSED or ADAPTER_NAME_TAKEN,
        ResourceExhausted QUEUE_FULL.
        """
        if len(request_id) > _REQUEST_ID_LENGTH:
            raise InvalidArgument("SETTING_OUT_OF_RANGE", "request_id is longer than 128 characters", field="request_id")
        before = await self._store.by_request(request_id) if request_id else None
        if before is not None and before.spec == spec:
            return await self.get(before.id)
        if spec.four_bit and not (self._launcher.has_cuda or self._limits.four_bit_on_cpu):
            message = "four_bit needs a CUDA device where the trainer runs, and there is none: leave four_bit unset"
            raise FailedPrecondition("CUDA_NEEDED", message, field=f"spec.{spec.method.kind}.lora.four_bit")
        spec.divided(self._launcher.processes)
        inputs = await self._inputs.read(spec)
        work = work_hash(spec, inputs)
        found = await self._shelf.find(spec.adapter_name, work)
        async with self._lock:
            job = await self._create(spec, inputs, work, found, request_id)
        await self._fill()
        return await self.get(job.id)

    async def _create(self, spec: TrainingSpec, inputs: Inputs, work: str, found: Found, request_id: str) -> Job:
        before = await self._store.by_request(request_id) if request_id else None
        if before is not None:
            if before.work != work:
                message = "request_id {request_id} was used for other work (job {job}): use a new one"
                raise AlreadyExists("REQUEST_ID_REUSED", message, request_id=request_id, job=before.id, field="request_id")
            return before
        same = await self._store.alive_with_work(work)
        # A finished job whose adapter was deleted since is no answer.
        if same is None or (same.state is JobState.SUCCEEDED and not found.has_work(same)):
            same = await self._add(spec, inputs, work, found)
        if request_id:
            await self._store.remember_request(request_id, same.id)
        return same

    async def _add(self, spec: TrainingSpec, inputs: Inputs, work: str, found: Found) -> Job:
        name = spec.adapter_name
        other = await self._store.alive_with_adapter(name)
        job = Job(uuid.uuid4().hex, spec, inputs, work, datetime.now(UTC))
        if found.adapter is not None:
            # Made by a job that is not known here, or was thought to have failed.
            await self._store.add(job)
            await self._finish(job, found.adapter)
            return job
        if found.has(other) or (other is not None and not other.state.ended):
            message = "adapter name {name} is taken by other work{by}: choose another name, or delete that adapter's folder"
            by = f" (job {other.id})" if other is not None else ""
            raise AlreadyExists("ADAPTER_NAME_TAKEN", message, name=name, by=by, field="spec.adapter_name")
        if len(await self._store.in_state(JobState.QUEUED)) >= self._limits.max_queued:
            raise ResourceExhausted("QUEUE_FULL", "{count} jobs wait already: come back when some are done", count=self._limits.max_queued)
        await self._store.add(job)
        return job

    def running(self) -> list[Job]:
        """Jobs that have a slot."""
        return [active.job for active in list(self._active.values())]

    async def get(self, id_: str) -> Job:
        """The job as it now is. Raises NotFound JOB_NOT_FOUND."""
        if id_ in self._active:
            return self._active[id_].job
        job = await self._store.get(id_)
        if job is None:
            raise NotFound("JOB_NOT_FOUND", "no job {id}", id=id_)
        return job

    async def page(self, state: JobState | None, size: int | None, token: str) -> tuple[Sequence[Job], str]:
        """Jobs, newest first, and the token of the next page. Raises InvalidArgument PAGE_TOKEN_INVALID."""
        listing, size = f"jobs {state or ''}", page_size(size)
        rows = await self._store.page(state, page_start(listing, token), size + 1)
        jobs = [self._active[job.id].job if job.id in self._active else job for _, job in rows[:size]]
        return jobs, page_token(listing, rows[size - 1][0]) if len(rows) > size else ""

    async def cancel(self, id_: str) -> Job:
        """Ends a job within 5 seconds; one that has ended stays as it is. Raises NotFound JOB_NOT_FOUND."""
        async with self._lock:
            job = await self.get(id_)
            if job.state is JobState.QUEUED:
                self._launcher.drop(id_)
                await self._store.update(replace(job, state=JobState.CANCELLED, end_time=datetime.now(UTC)))
                await asyncio.to_thread(self._checkpoints.discard, job.work)
                self._notify(id_)
            stopping = self._stop(self._active[id_], _Stop.CANCEL) if id_ in self._active else None
        if stopping is not None:
            await stopping
        return await self.get(id_)

    async def watch(self, id_: str) -> AsyncIterator[Job]:
        """The job now and at every change until it has ended; changes that come quicker than they are taken run together."""
        last = None
        while True:
            # Taken before the job is read, so that no change falls in between.
            changed = self._changed.setdefault(id_, asyncio.Event())
            try:
                job = await self.get(id_)
            except NotFound:
                self._changed.pop(id_, None)
                raise
            if job != last:
                yield job
                last = job
            if job.state.ended:
                self._changed.pop(id_, None)
                return
            await changed.wait()

    async def adapter(self, name: str) -> Adapter:
        """A finished adapter. Raises NotFound ADAPTER_NOT_FOUND."""
        adapter = await self._store.get_adapter(name)
        if adapter is None or not await self._shelf.exists(name):
            raise NotFound("ADAPTER_NOT_FOUND", "no adapter {name}", name=name)
        return adapter

    async def adapters(self, base: str, size: int | None, token: str) -> tuple[Sequence[Adapter], str]:
        """Adapters, newest first, and the token of the next page. Raises InvalidArgument PAGE_TOKEN_INVALID."""
        listing, size = f"adapters {base}", page_size(size)
        rows = await self._store.adapters_page(base, page_start(listing, token), size + 1)
        there = await self._shelf.there([adapter for _, adapter in rows[:size]])
        return there, page_token(listing, rows[size - 1][0]) if len(rows) > size else ""

    def _stop(self, active: _Active, why: _Stop) -> asyncio.Future[None]:
        active.why = active.why or why
        active.stop.set()
        assert active.task is not None  # noqa: S101  set where it is made
        # Shielded: whoever asked may go away, the job's end is written down all the same.
        return asyncio.shield(active.task)

    def _notify(self, id_: str) -> None:
        changed = self._changed.pop(id_, None)
        if changed is not None:
            changed.set()

    async def _fill(self) -> None:
        """Gives free slots to the oldest jobs that wait."""
        async with self._lock:
            if self._closing:
                return
            free = self._limits.slots - sum(self._launcher.takes_slot(active.job.spec) for active in self._active.values())
            for job in await self._store.in_state(JobState.QUEUED):
                if self._launcher.takes_slot(job.spec):
                    if free <= 0:
                        continue
                    free -= 1
                running = replace(job, state=JobState.RUNNING, start_time=datetime.now(UTC))
                await self._store.update(running)
                active = _Active(running)
                self._active[job.id] = active
                active.task = asyncio.create_task(self._run(active))
                self._notify(job.id)

    async def _run(self, active: _Active) -> None:
        """One attempt, from launch to the state that it ends in."""
        id_ = active.job.id
        try:
            error = await self._attempt(active)
        except Exception as problem:
            _log.exception("job could not be run", job=id_)
            error = words_of_error(problem)
        await self._shelf.clear(id_)
        adapter = await self._shelf.made(active.job, in_haste=active.why is not None)
        while not await self._settled(active, adapter, error):  # noqa: ASYNC110  a full disk tells nobody when it is full no more
            await asyncio.sleep(_RETRY_S)
        await self._fill()

    async def _settled(self, active: _Active, adapter: Adapter | None, error: str) -> bool:
        """Writes down how the job ended; False when the database does not take it now, say because the disk is full."""
        async with self._lock:
            try:
                await self._settle(active, adapter, error)
            except Exception:
                _log.exception("the end of a job could not be written down", job=active.job.id)
                # At shutdown the next service finds out for itself.
                if not self._closing:
                    return False
            del self._active[active.job.id]
            self._notify(active.job.id)
        return True

    async def _settle(self, active: _Active, adapter: Adapter | None, error: str) -> None:
        # What was published counts, whatever was asked of the job or became of its process afterwards.
        if adapter is not None:
            await self._finish(active.job, adapter)
        elif active.why is _Stop.SHUTDOWN or (active.why is None and active.resumes):
            await self._store.update(_queued_again(active.job))
            _log.info("job was interrupted and goes on", job=active.job.id, step=active.job.progress.checkpoint_step, error=error)
        else:
            cancelled = active.why is _Stop.CANCEL
            state, error = (JobState.CANCELLED, "") if cancelled else (JobState.FAILED, error)
            await self._store.update(replace(active.job, state=state, error=error, end_time=datetime.now(UTC)))
            if cancelled:
                await asyncio.to_thread(self._checkpoints.discard, active.job.work)
            # Those of a job that failed stay: the same work, created again, goes on from them.
            _log.info("job ended", job=active.job.id, state=state.value, error=error)

    async def _finish(self, job: Job, adapter: Adapter) -> None:
        await self._store.put_adapter(adapter)
        done = replace(job, state=JobState.SUCCEEDED, adapter=adapter.name, dataset=adapter.dataset, end_time=datetime.now(UTC))
        await self._store.update(done)
        await asyncio.to_thread(self._checkpoints.discard, job.work)
        _log.info("job succeeded", job=job.id, adapter=adapter.name)

    async def _attempt(self, active: _Active) -> str:
        """Runs the process to its end; why it failed, should it have."""
        job = active.job
        order = Order(
            job_id=job.id,
            spec=job.spec,
            inputs=job.inputs,
            work=job.work,
            adapters_dir=self._adapters.path,
            checkpoints_dir=self._checkpoints.path(job.work),
            checkpoint_s=self._limits.checkpoint_s,
            threads=self._limits.threads,
            processes=self._launcher.processes,
            four_bit_on_cpu=self._limits.four_bit_on_cpu,
            store=self._adapters.store,
            report_to=self._limits.report_to,
        )
        stopped = asyncio.create_task(active.stop.wait())
        launching = asyncio.ensure_future(self._launcher.launch(order))
        stopping: asyncio.Task[None] | None = None
        try:
            await asyncio.wait((launching, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not launching.done():
                launching.cancel()
                await asyncio.wait((launching,))
                if launching.cancelled():
                    return ""
            run = launching.result()
            stopping = asyncio.create_task(_stop_when_told(active, run))
            return await self._follow(active, run)
        finally:
            stopped.cancel()
            if stopping is not None:
                stopping.cancel()

    async def _follow(self, active: _Active, run: TrainingRun) -> str:
        error, exited = "", Exited(None)
        began_at: int | None = None
        async for event in run.events():
            match event:
                case Started():
                    # Another process of the same attempt, where those that run it start a new one.
                    error, began_at, active.resumes = "", None, False
                case DatasetRead(report):
                    active.job = replace(active.job, dataset=report)
                case Progressed(progress):
                    began_at = progress.checkpoint_step if began_at is None else began_at
                    # One that gets no further than the one before it would be started for ever.
                    active.resumes = not error and progress.checkpoint_step > began_at
                    active.job = replace(active.job, progress=progress)
                case Interrupted():
                    active.resumes = not error
                case Failed(why):
                    # Of several processes the first to fail says why; the others only miss it.
                    error, active.resumes = error or why, False
                case Exited():
                    exited = event
            self._notify(active.job.id)
        return error or words_of_exit(exited)


async def _stop_when_told(active: _Active, run: TrainingRun) -> None:
    await active.stop.wait()
    await (run.stop() if active.why is _Stop.CANCEL else run.leave())


def _queued_again(job: Job) -> Job:
    progress = Progress(checkpoint_step=job.progress.checkpoint_step)
    return replace(job, state=JobState.QUEUED, progress=progress, dataset=None, start_time=None)
