"""The life of jobs, with the true store and a scripted launcher behind its port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.trainer import job_queue
from services.trainer.domain import (
    Adapter,
    DatasetRead,
    DatasetReport,
    Event,
    Exited,
    Failed,
    Inputs,
    Interrupted,
    Job,
    JobState,
    Order,
    Progress,
    Progressed,
)
from services.trainer.job_queue import JobQueue, Limits
from services.trainer.jobs import SqlJobStore
from services.trainer.meter import observe
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning, TrainingSpec

REPORT = DatasetReport(3, 0, 0, 30, 9)


class ScriptedRun:
    """A run whose events the test gives."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[Event] = asyncio.Queue()
        self.stopped = False

    async def events(self) -> AsyncIterator[Event]:
        while True:
            event = await self.given.get()
            yield event
            if isinstance(event, Exited):
                return

    async def stop(self) -> None:
        self.stopped = True
        self.given.put_nowait(Exited(-15))


class ScriptedLauncher:
    has_cuda = False
    processes = 1

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.runs: dict[str, ScriptedRun] = {}
        self.launched = asyncio.Condition()
        self.slow = False
        self.broken = False

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

    def __init__(self) -> None:
        self.made: dict[str, Adapter] = {}

    def publish(self, name: str, job_id: str) -> None:
        time = datetime(2024, 1, 1, tzinfo=UTC)
        self.made[name] = Adapter(name, f"/a/{name}", "base", "b", "w", "d", job_id, 0.5, 90, 1.5, REPORT, {}, time)

    def exists(self, name: str) -> bool:
        return name in self.made

    def published(self, name: str, job_id: str) -> Adapter | None:
        adapter = self.made.get(name)
        return adapter if adapter and adapter.job_id == job_id else None

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
        self.adapters.publish(job.spec.adapter_name, job.id)
        run.given.put_nowait(Exited(0))
        return await self.until(job, lambda seen: seen.state.ended)


def spec_of(name: str = "one", seed: int = 1, four_bit: bool = False, base: str = "base") -> TrainingSpec:
    return TrainingSpec(name, base, "data", "", seed, SupervisedFineTuning(Lora.given(four_bit=four_bit), Optimization.given()))


def reached(step: int, job: Job) -> bool:
    return job.progress.step == step


async def test_a_job_goes_from_queued_to_succeeded_and_each_change_is_seen(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        seen: list[Job] = []

        async def watch() -> None:
            async for change in house.queue.watch(job.id):
                seen.append(change)

        watching = asyncio.create_task(watch())
        run = await house.launched("one")
        run.given.put_nowait(DatasetRead(REPORT))
        await house.until(job, lambda now: now.dataset == REPORT)
        for step in (1, 2):
            run.given.put_nowait(Progressed(Progress(step, 2, 0.9)))
            await house.until(job, partial(reached, step))
        house.adapters.publish("one", job.id)
        run.given.put_nowait(Exited(0))
        await watching
        assert [change.progress.step for change in seen][-3:] == [1, 2, 2]
        assert seen[-1].state is JobState.SUCCEEDED
        assert (seen[-1].adapter, seen[-1].dataset, seen[-1].error) == ("one", REPORT, "")
        assert seen[-1].start_time is not None
        assert seen[-1].end_time is not None
        assert await house.queue.get(job.id) == seen[-1]
        assert await house.queue.adapter("one") == house.adapters.made["one"]


async def test_jobs_run_in_order_and_no_more_at_once_than_there_are_slots(tmp_path: Path) -> None:
    async with House(tmp_path, slots=2) as house:
        jobs = [await house.queue.create(spec_of(name), "") for name in ("a", "b", "c", "d")]
        await house.launched("b")
        assert [order.spec.adapter_name for order in house.launcher.orders] == ["a", "b"]
        await house.succeed(jobs[1])
        await house.launched("c")
        assert [(await house.queue.get(job.id)).state.value for job in jobs] == ["running", "succeeded", "running", "queued"]


async def test_the_same_request_gives_the_same_job_whatever_became_of_it(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "request")
        assert (await house.queue.cancel(job.id)).state is JobState.CANCELLED
        assert (await house.queue.create(spec_of(), "request")).id == job.id
        with pytest.raises(AlreadyExists) as error:
            await house.queue.create(spec_of(seed=2), "request")
        assert error.value.reason == "REQUEST_ID_REUSED"


async def test_the_same_work_is_done_once_unless_it_failed_or_was_cancelled(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "first")
        assert (await house.queue.create(spec_of(), "second")).id == job.id
        assert (await house.queue.create(spec_of(), "second")).id == job.id
        (await house.launched("one")).given.put_nowait(Failed("why"))
        house.launcher.runs.pop("one").given.put_nowait(Exited(1))
        failed = await house.until(job, lambda seen: seen.state.ended)
        assert (failed.state, failed.error) == (JobState.FAILED, "why")
        again = await house.queue.create(spec_of(), "")
        assert again.id != job.id
        await house.succeed(again)
        assert (await house.queue.create(spec_of(), "")).id == again.id
        assert (await house.queue.create(spec_of(), "")).state is JobState.SUCCEEDED


async def test_work_whose_adapter_was_deleted_is_done_again(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        done = await house.succeed(await house.queue.create(spec_of(), ""))
        house.launcher.runs.clear()
        house.adapters.made.clear()
        with pytest.raises(NotFound):
            await house.queue.adapter("one")
        again = await house.queue.create(spec_of(), "")
        assert again.id != done.id
        assert (await house.succeed(again)).state is JobState.SUCCEEDED


async def test_a_name_is_taken_while_other_work_makes_or_made_that_adapter(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        for _ in range(2):
            with pytest.raises(AlreadyExists) as error:
                await house.queue.create(spec_of(seed=2), "")
            assert error.value.reason == "ADAPTER_NAME_TAKEN"
            if not (await house.queue.get(job.id)).state.ended:
                await house.succeed(job)


async def test_a_queue_has_an_end(tmp_path: Path) -> None:
    async with House(tmp_path, max_queued=1) as house:
        await house.queue.create(spec_of("a"), "")
        await house.queue.create(spec_of("b"), "")
        with pytest.raises(ResourceExhausted) as error:
            await house.queue.create(spec_of("c"), "")
        assert error.value.reason == "QUEUE_FULL"


async def test_four_bits_without_cuda_are_refused(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        with pytest.raises(FailedPrecondition) as error:
            await house.queue.create(spec_of(four_bit=True), "")
        assert error.value.reason == "CUDA_NEEDED"


async def test_cancelling_ends_queued_launching_and_running_jobs_and_leaves_ended_ones(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        running, queued = [await house.queue.create(spec_of(name), "") for name in ("a", "b")]
        run = await house.launched("a")
        assert (await house.queue.cancel(queued.id)).state is JobState.CANCELLED
        assert (await house.queue.cancel(running.id)).state is JobState.CANCELLED
        assert run.stopped
        house.launcher.slow = True
        launching = await house.queue.create(spec_of("c"), "")
        assert (await house.queue.cancel(launching.id)).state is JobState.CANCELLED
        house.launcher.slow = False
        done = await house.succeed(await house.queue.create(spec_of("d"), ""))
        assert await house.queue.cancel(done.id) == done
        with pytest.raises(NotFound):
            await house.queue.cancel("nobody")


async def test_a_job_that_published_before_it_was_cancelled_has_succeeded(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        await house.launched("one")
        house.adapters.publish("one", job.id)
        assert (await house.queue.cancel(job.id)).state is JobState.SUCCEEDED


async def test_a_process_that_dies_or_cannot_start_fails_its_job_and_frees_the_slot(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        first, second = [await house.queue.create(spec_of(name), "") for name in ("a", "b")]
        (await house.launched("a")).given.put_nowait(Exited(-9))
        assert "SIGKILL" in (await house.until(first, lambda job: job.state.ended)).error
        (await house.launched("b")).given.put_nowait(Exited(3))
        house.launcher.broken = True
        assert "exit code 3" in (await house.until(second, lambda job: job.state.ended)).error
        third = await house.queue.create(spec_of("c"), "")
        assert "no processes left" in (await house.until(third, lambda job: job.state.ended)).error


async def test_an_end_that_the_database_does_not_take_is_written_down_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queue, "_RETRY_S", 0.0)
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        run = await house.launched("one")
        update = house.store.update
        refused: list[Job] = []

        async def full_once(changed: Job) -> None:
            if not refused:
                refused.append(changed)
                raise OSError("disk full")
            await update(changed)

        monkeypatch.setattr(house.store, "update", full_once)
        run.given.put_nowait(Exited(1))
        assert (await house.until(job, lambda seen: seen.state.ended)).state is JobState.FAILED
        assert refused


async def test_a_restart_goes_on_with_queued_jobs_and_runs_interrupted_ones_again(tmp_path: Path) -> None:
    house = House(tmp_path)
    async with house:
        interrupted, published, queued = [await house.queue.create(spec_of(name), f"r{name}") for name in ("a", "b", "c")]
        await house.launched("a")
        # As kill -9 leaves it: nothing is said to the database any more.
        running = await house.store.get(interrupted.id)
        assert running is not None
    async with house:
        await house.store.update(running)
        await house.store.update(replace(published, state=JobState.RUNNING))
        house.adapters.publish("b", published.id)
        await house.queue.start()
        assert (await house.queue.get(published.id)).state is JobState.SUCCEEDED
        assert (await house.queue.create(spec_of("a"), "ra")).id == interrupted.id
        assert (await house.succeed(interrupted)).state is JobState.SUCCEEDED
        assert (await house.succeed(queued)).state is JobState.SUCCEEDED


async def test_a_service_that_ends_in_order_puts_its_running_jobs_back(tmp_path: Path) -> None:
    house = House(tmp_path)
    async with house:
        job = await house.queue.create(spec_of(), "")
        run = await house.launched("one")
        run.given.put_nowait(DatasetRead(REPORT))
        run.given.put_nowait(Progressed(Progress(1, 2)))
        await house.until(job, lambda seen: seen.progress.step == 1)
    assert run.stopped
    async with house:
        again = await house.queue.get(job.id)
        assert (again.state, again.progress, again.dataset, again.start_time) == (JobState.QUEUED, Progress(), None, None)


async def test_a_watcher_of_an_ended_job_gets_it_once_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        done = await house.succeed(await house.queue.create(spec_of(), ""))
        assert [job async for job in house.queue.watch(done.id)] == [done]
        with pytest.raises(NotFound):
            _ = [job async for job in house.queue.watch("nobody")]


async def test_pages_hold_every_job_and_adapter_once_newest_first(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        for name in ("a", "b", "c"):
            await house.succeed(await house.queue.create(spec_of(name), ""))
        await house.queue.create(spec_of("d"), "")
        pages, token = [], ""
        while True:
            jobs, token = await house.queue.page(None, 3, token)
            pages.append([job.spec.adapter_name for job in jobs])
            if not token:
                break
        assert pages == [["d", "c", "b"], ["a"]]
        first, token = await house.queue.page(JobState.SUCCEEDED, 2, "")
        last, end = await house.queue.page(JobState.SUCCEEDED, 2, token)
        assert ([job.spec.adapter_name for job in (*first, *last)], end) == (["c", "b", "a"], "")
        with pytest.raises(InvalidArgument):
            await house.queue.page(None, 2, token)
        adapters, token = await house.queue.adapters("base", 2, "")
        rest, end = await house.queue.adapters("base", 2, token)
        assert ([adapter.name for adapter in (*adapters, *rest)], end) == (["c", "b", "a"], "")
        assert (await house.queue.adapters("other", None, ""))[0] == []


async def test_a_killed_job_goes_on_as_long_as_each_attempt_gets_further(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        for checkpoint in (4, 9):
            run = await house.launched("one")
            house.launcher.runs.clear()
            run.given.put_nowait(Progressed(Progress(step=checkpoint - 1, step_count=20, checkpoint_step=checkpoint - 1)))
            run.given.put_nowait(Progressed(Progress(step=checkpoint, step_count=20, checkpoint_step=checkpoint)))
            run.given.put_nowait(Exited(-9))
        run = await house.launched("one")
        assert len(house.launcher.orders) == 3
        assert {order.checkpoints_dir for order in house.launcher.orders} == {f"/c/{job.work}"}
        # This one begins where the last one was, and gets no further.
        run.given.put_nowait(Progressed(Progress(step=9, step_count=20, checkpoint_step=9)))
        run.given.put_nowait(Progressed(Progress(step=12, step_count=20, checkpoint_step=9)))
        run.given.put_nowait(Exited(-9))
        failed = await house.until(job, lambda seen: seen.state.ended)
        assert (failed.state, "SIGKILL" in failed.error) == (JobState.FAILED, True)
        assert house.checkpoints.discarded == []


async def test_an_interrupted_job_goes_on_and_one_that_says_why_it_cannot_does_not(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        run = await house.launched("one")
        house.launcher.runs.clear()
        run.given.put_nowait(Interrupted())
        run.given.put_nowait(Exited(4))
        run = await house.launched("one")
        run.given.put_nowait(Progressed(Progress(step=1, step_count=20)))
        run.given.put_nowait(Progressed(Progress(step=5, step_count=20, checkpoint_step=5)))
        run.given.put_nowait(Failed("the disk is full"))
        run.given.put_nowait(Exited(1))
        failed = await house.until(job, lambda seen: seen.state.ended)
        assert (failed.state, failed.error, len(house.launcher.orders)) == (JobState.FAILED, "the disk is full", 2)
        # The same work, created again, goes on from there.
        again = await house.queue.create(spec_of(), "")
        assert again.id != job.id
        assert again.work == job.work


async def test_a_batch_that_cannot_be_divided_is_refused_when_the_job_is_created(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.launcher.processes = 3
        with pytest.raises(InvalidArgument, match="batch_size 16 cannot be divided among the trainer's 3 processes") as refused:
            await house.queue.create(spec_of(), "")
        assert (refused.value.reason, refused.value.metadata["field"]) == ("BATCH_NOT_DIVISIBLE", "spec.sft.optimization.batch_size")
        house.launcher.processes = 4
        await house.queue.create(spec_of(), "")


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "divided"),
    [(16, 16, 1, (16, 1)), (16, 16, 4, (4, 1)), (16, 2, 4, (2, 2)), (12, 4, 2, (3, 2)), (8, 8, 8, (1, 1))],
)
def test_a_batch_is_divided_into_equal_pieces(batch: int, micro: int, processes: int, divided: tuple[int, int]) -> None:
    course = Optimization.given(batch_size=batch, micro_batch_size=micro)
    assert replace(spec_of(), method=SupervisedFineTuning(Lora.given(), course)).divided(processes) == divided


async def test_of_several_processes_the_first_to_fail_says_why(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        run = await house.launched("one")
        for event in (
            Progressed(Progress(step=1, step_count=20)),
            Failed("out of memory: lower micro_batch_size"),
            Progressed(Progress(step=2, step_count=20, checkpoint_step=2)),
            Failed("connection closed by peer"),
            Exited(1),
        ):
            run.given.put_nowait(event)
        failed = await house.until(job, lambda seen: seen.state.ended)
        assert (failed.state, failed.error) == (JobState.FAILED, "out of memory: lower micro_batch_size")


async def test_figures_of_running_jobs_are_there_for_prometheus_and_go_with_them(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        reader = InMemoryMetricReader()
        observe(MeterProvider(metric_readers=[reader]).get_meter("test"), house.queue.running)

        def shown() -> dict[str, tuple[float, Any]]:
            data = reader.get_metrics_data()
            found = data.resource_metrics[0].scope_metrics[0].metrics if data is not None else []
            return {one.name: (point.value, point.attributes) for one in found for point in one.data.data_points}  # type: ignore[union-attr]

        job = await house.queue.create(spec_of(), "")
        run = await house.launched("one")
        run.given.put_nowait(Progressed(Progress(step=3, step_count=20, loss=1.5)))
        await house.until(job, lambda seen: reached(3, seen))
        told = shown()
        assert told["tunetrial_training_loss"] == (1.5, {"adapter": "one"})
        assert told["tunetrial_training_step"][0] == 3
        assert "tunetrial_training_evaluation_loss" not in told
        await house.succeed(job)
        assert shown() == {}
