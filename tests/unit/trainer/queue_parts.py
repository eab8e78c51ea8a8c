"""A queue of jobs with the true store and a scripted launcher behind its port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

from services.trainer.domain import (
    Adapter,
    DatasetRead,
    DatasetReport,
    Event,
    Exited,
    Inputs,
    Job,
    Order,
)
from services.trainer.job_queue import JobQueue, Limits
from services.trainer.jobs import SqlJobStore
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning, TrainingSpec

REPORT = DatasetReport(3, 0, 0, 30, 9)


class ScriptedRun:
    """A run whose events the test gives."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[Event] = asyncio.Queue()
        self.stopped = self.left = False

    async def events(self) -> AsyncIterator[Event]:
        while True:
            event = await self.given.get()
            yield event
            if isinstance(event, Exited):
                return

    async def stop(self) -> None:
        self.stopped = True
        self.given.put_nowait(Exited(-15))

    async def leave(self) -> None:
        self.left = True
        self.given.put_nowait(Exited(-15))


class ScriptedLauncher:
    has_cuda = False
    processes = 1

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.runs: dict[str, ScriptedRun] = {}
        self.launched = asyncio.Condition()
        self.dropped: list[str] = []
        self.slow = False
        self.broken = False

    def takes_slot(self, spec: TrainingSpec) -> bool:
        return not spec.hosted

    async def launch(self, order: Order) -> ScriptedRun:
        self.orders.append(order)
        if self.broken:
            raise OSError("no processes left")
        if self.slow:
            await asyncio.Event().wait()
        run = self.runs[order.spec.adapter_name] = ScriptedRun()
        async with self.launched:
            self.launched.notify_all()
        return run

    def drop(self, job_id: str) -> None:
        self.dropped.append(job_id)

    async def close(self) -> None:
        pass


class GivenInputs:
    """Every base and data set is there and is told by its name."""

    async def read(self, spec: TrainingSpec) -> Inputs:
        return Inputs(spec.base, None, None, f"sha of {spec.base}", "text", spec.dataset_uri, f"sha of {spec.dataset_uri}", None, None)


class CheckpointsInMemory:
    def __init__(self) -> None:
        self.discarded: list[str] = []

    def path(self, work: str) -> str:
        return f"/c/{work}"

    def discard(self, work: str) -> None:
        self.discarded.append(work)


class AdaptersInMemory:
    path = "/a"
    store = None

    def __init__(self) -> None:
        self.made: dict[str, Adapter] = {}
        self.works: dict[str, str] = {}
        """Works of adapters, by name."""

    def publish(self, name: str, job_id: str, work: str = "") -> None:
        self.works[name] = work
        time = datetime(2024, 1, 1, tzinfo=UTC)
        self.made[name] = Adapter(name, f"/a/{name}", "base", "b", "w", "d", job_id, 0.5, 90, 1.5, REPORT, {}, time)

    def exists(self, name: str) -> bool:
        return name in self.made

    def published(self, name: str, job_id: str) -> Adapter | None:
        adapter = self.made.get(name)
        return adapter if adapter and adapter.job_id == job_id else None

    def of_work(self, name: str, work: str) -> Adapter | None:
        return self.made[name] if self.works.get(name) == work else None

    def discard_partial(self, job_id: str | None = None) -> None:
        pass


class House:
    """A queue with its parts, which can be restarted on the same database."""

    def __init__(self, folder: Path, slots: int = 1, max_queued: int = 10) -> None:
        self.url, self.limits = f"sqlite+aiosqlite:///{folder}/jobs.sqlite", Limits(slots, max_queued, 1, 60.0)
        self.adapters, self.checkpoints = AdaptersInMemory(), CheckpointsInMemory()

    async def __aenter__(self) -> House:
        self.store, self.launcher = SqlJobStore(self.url), ScriptedLauncher()
        await self.store.open()
        self.queue = JobQueue(self.store, self.launcher, GivenInputs(), self.adapters, self.checkpoints, self.limits)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.queue.close()
        await self.store.close()

    async def until(self, job: Job, fits: Callable[[Job], bool]) -> Job:
        async for seen in self.queue.watch(job.id):
            if fits(seen):
                return seen
        raise AssertionError("the job ended before")

    async def launched(self, name: str) -> ScriptedRun:
        async with self.launcher.launched:
            await self.launcher.launched.wait_for(lambda: name in self.launcher.runs)
        return self.launcher.runs[name]

    async def succeed(self, job: Job) -> Job:
        run = await self.launched(job.spec.adapter_name)
        run.given.put_nowait(DatasetRead(REPORT))
        self.adapters.publish(job.spec.adapter_name, job.id, job.work)
        run.given.put_nowait(Exited(0))
        return await self.until(job, lambda seen: seen.state.ended)


def spec_of(name: str = "one", seed: int = 1, four_bit: bool = False, base: str = "base") -> TrainingSpec:
    return TrainingSpec(name, base, "data", "", seed, SupervisedFineTuning(Lora.given(four_bit=four_bit), Optimization.given()))


def reached(step: int, job: Job) -> bool:
    return job.progress.step == step
