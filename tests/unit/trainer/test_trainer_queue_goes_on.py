"""Jobs that are interrupted, or that several processes share: when they go on and when they fail. And what is shown of them meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.common.errors import InvalidArgument
from services.trainer.domain import Exited, Failed, Interrupted, JobState, Progress, Progressed
from services.trainer.meter import observe
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning
from tests.unit.trainer.queue_parts import House, reached, spec_of


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
