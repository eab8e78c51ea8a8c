"""The training process of a pod as a real one, on a tiny base. What it writes is read as the launcher reads a pod's log."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.trainer.domain import DatasetRead, Event, Failed, Interrupted, Order, Progressed, Started
from services.trainer.inputs import FileInputs
from services.trainer.job import INTERRUPTED
from services.trainer.local_launcher import job_environment
from services.trainer.manifest import AdapterFiles
from services.trainer.pod import FAILED_CODE, event_in
from services.trainer.records import ORDER, work_hash
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning, TrainingSpec
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows


@dataclass(frozen=True)
class Volume:
    root: Path

    async def order(self, name: str, steps: int, max_length: int | None = None) -> Order:
        course = Optimization.given(max_steps=steps, batch_size=4, max_length=max_length)
        spec = TrainingSpec(
            name, str(self.root / "base"), str(self.root / "train.jsonl"), "", 1, SupervisedFineTuning(Lora.given(rank=2), course)
        )
        inputs = await FileInputs(str(self.root), {}).read(spec)
        work = work_hash(spec, inputs)
        return Order(f"job-{name}", spec, inputs, work, str(self.root / "adapters"), str(self.root / "checkpoints" / work), 60.0, 1)

    def file(self, order: Order) -> Path:
        file = self.root / f"{order.job_id}.json"
        file.write_bytes(ORDER.dump_json(order))
        return file

    async def start(self, file: Path, **environment: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.trainer.pod", str(file)),
            env=job_environment(os.environ, 1) | environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def run(self, file: Path, **environment: str) -> tuple[int | None, list[Event]]:
        process = await self.start(file, **environment)
        said, _ = await process.communicate()
        return process.returncode, [event for line in said.decode().splitlines() if (event := event_in(line)) is not None]


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    root = tmp_path_factory.mktemp("volume")
    make_base(root / "base")
    write_rows(root / "train.jsonl", questions(12))
    (root / "adapters").mkdir()
    return Volume(root)


async def test_a_pod_trains_publishes_and_tells_it_in_its_log(volume: Volume) -> None:
    order = await volume.order("one", 4)
    # As a pod that was killed while it published left it.
    half = volume.root / "adapters" / f".partial-{order.job_id}-1"
    half.mkdir()
    code, events = await volume.run(volume.file(order))
    assert code == 0
    assert isinstance(events[0], Started)
    assert isinstance(events[1], DatasetRead)
    last = events[-1]
    assert isinstance(last, Progressed)
    assert last.progress.step == last.progress.step_count == 4
    assert AdapterFiles(volume.root / "adapters").published("one", order.job_id) is not None
    assert not half.exists()
    # A pod that is started after that, since nobody saw the first one end, has nothing to do.
    assert await volume.run(volume.file(order)) == (0, [])


async def test_a_pod_that_cannot_finish_says_why_and_that_no_other_could(volume: Volume) -> None:
    order = await volume.order("masked", 4, max_length=4)
    file = volume.file(order)
    code, events = await volume.run(file, RANK="1")
    # One of several processes that is not the first says nothing else.
    (failed,) = events
    assert isinstance(failed, Failed)
    assert failed.error.startswith("all 12 examples of dataset_uri lost their whole answer")
    assert code == FAILED_CODE
    # An order of another version.
    file.write_text("{}")
    assert (await volume.run(file))[0] == FAILED_CODE


async def test_a_pod_that_is_told_to_end_saves_where_it_stood(volume: Volume) -> None:
    process = await volume.start(volume.file(await volume.order("long", 100_000)))
    assert process.stdout is not None
    events: list[Event] = []
    async for line in process.stdout:
        event = event_in(line.decode())
        if event is not None:
            events.append(event)
        # Once: the checkpoint may be of the same step, and a process that has saved ends at once when it is told again.
        if isinstance(event, Progressed) and event.progress.step == 3 and not event.progress.checkpoint_step:
            process.terminate()
    assert await process.wait() == INTERRUPTED
    assert events[-1] == Interrupted()
    reached = [event.progress.checkpoint_step for event in events if isinstance(event, Progressed)]
    assert reached[-1] >= 3
