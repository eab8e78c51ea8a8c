"""The life of jobs, with the true store and a scripted launcher behind its port."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.trainer import job_queue
from services.trainer.domain import (
    DatasetRead,
    Exited,
    Failed,
    Job,
    JobState,
    Progress,
    Progressed,
)
from tests.unit.trainer.queue_parts import REPORT, House, reached, spec_of


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


async def test_the_adapter_of_other_work_under_its_name_is_not_the_answer(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.succeed(await house.queue.create(spec_of(), ""))
        house.launcher.runs.clear()
        house.adapters.made.clear()
        await house.succeed(await house.queue.create(spec_of(seed=2), ""))
        with pytest.raises(AlreadyExists, match="is taken by other work"):
            await house.queue.create(spec_of(), "")


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
        assert (run.left, run.stopped) == (False, True)
        # An earlier service may have launched what waits here.
        assert house.launcher.dropped == [queued.id]
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
    assert (run.left, run.stopped) == (True, False)
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
