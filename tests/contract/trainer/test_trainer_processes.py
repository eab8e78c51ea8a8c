"""A job of two processes on this machine: the course of one process with the same batch, and it ends, is cancelled and resumes as one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # the library ships no types
import pytest
import pytest_asyncio

from services.trainer.domain import Event, Exited, Failed, Interrupted, Order, Progressed
from services.trainer.inputs import FileInputs
from services.trainer.local_launcher import LocalLauncher, LocalRun, cuda_present
from services.trainer.manifest import AdapterFiles
from services.trainer.records import work_hash
from services.trainer.spec import FullFineTuning, Lora, Optimization, SupervisedFineTuning, TrainingSpec
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows

pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(cuda_present(), reason="needs a machine without CUDA")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    make_base(root / "base")
    write_rows(root / "train.jsonl", questions(16))
    write_rows(root / "evaluation.jsonl", questions(4))
    return root


@pytest_asyncio.fixture
async def two(root: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(root / "jobs", threads=1, processes=2, warm=True, cancel_grace_s=4)
    yield launcher
    await launcher.close()


async def order_of(root: Path, name: str, processes: int, max_steps: int | None = None, full: bool = False) -> Order:
    course = Optimization.given(
        batch_size=8, micro_batch_size=2, epochs=None if max_steps else 4.0, max_steps=max_steps, learning_rate=3e-3 if full else 1e-2
    )
    method = FullFineTuning(course) if full else SupervisedFineTuning(Lora.given(rank=2), course)
    spec = TrainingSpec(name, str(root / "base"), str(root / "train.jsonl"), str(root / "evaluation.jsonl"), 1, method)
    inputs = await FileInputs(str(root), {}).read(spec)
    work = work_hash(spec, inputs)
    return Order(f"job-{name}", spec, inputs, work, str(root / "adapters"), str(root / "checkpoints" / name), 60.0, 1, processes)


async def events(run: LocalRun) -> list[Event]:
    return [event async for event in run.events()]


async def until_step(run: LocalRun, step: int, seen: list[Event]) -> asyncio.Task[None]:
    """Reads on in the background, once training is at that step."""
    there = asyncio.Event()

    async def read() -> None:
        async for event in run.events():
            seen.append(event)
            if isinstance(event, Progressed) and event.progress.step >= step:
                there.set()

    reading = asyncio.create_task(read())
    waiting = asyncio.create_task(there.wait())
    await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
    assert there.is_set(), seen
    return reading


def steps(seen: list[Event]) -> list[tuple[int, float]]:
    return [
        (event.progress.step, event.progress.loss) for event in seen if isinstance(event, Progressed) and event.progress.loss is not None
    ]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
async def test_two_processes_give_the_loss_curve_of_one(root: Path, two: LocalLauncher, full: bool) -> None:
    names = [f"{which}-{full}" for which in ("together", "alone")]
    together = await events(await two.launch(await order_of(root, names[0], 2, full=full)))
    assert isinstance(together[-1], Exited)
    assert together[-1].code == 0, together[-1]
    one = LocalLauncher(root / "jobs", threads=1, processes=1, warm=False, cancel_grace_s=4)
    alone = await events(await one.launch(await order_of(root, names[1], 1, full=full)))
    await one.close()
    assert len(steps(alone)) > 8
    assert steps(together) == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in steps(alone)]
    adapters = AdapterFiles(root / "adapters")
    made = [adapters.published(name, f"job-{name}") for name in names]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].trained_tokens == made[1].trained_tokens


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
async def test_both_save_and_end_when_told_to_and_go_on_together(root: Path, two: LocalLauncher, full: bool) -> None:
    names = [f"{which}-{full}" for which in ("whole", "told")]
    whole = await events(await two.launch(await order_of(root, names[0], 2, max_steps=40, full=full)))
    order, seen = await order_of(root, names[1], 2, max_steps=40, full=full), list[Event]()
    run = await two.launch(order)
    reading = await until_step(run, 3, seen)
    await run.stop()
    await reading
    assert any(isinstance(event, Interrupted) for event in seen)
    rest = await events(await two.launch(order))
    began = next(event.progress.step for event in rest if isinstance(event, Progressed))
    assert began >= 3
    assert steps(rest)[-1] == steps(whole)[-1]
    adapters = AdapterFiles(root / "adapters")
    first, again = (adapters.published(name, f"job-{name}") for name in names)
    assert first is not None
    assert again is not None
    assert first.weights_sha256 == again.weights_sha256


async def test_a_process_that_dies_takes_the_job_along_and_none_is_left(root: Path, two: LocalLauncher) -> None:
    seen: list[Event] = []
    run = await two.launch(await order_of(root, "dying", 2, max_steps=100_000))
    reading = await until_step(run, 2, seen)
    commands = {process: " ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)}
    processes = [process for process, command in commands.items() if "services.trainer.job" in command]
    workers = [process for process in processes if "torch.distributed.run" not in commands[process]]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    await reading
    assert isinstance(seen[-1], Exited)
    assert seen[-1].code not in (0, None)
    psutil.wait_procs(processes, timeout=30)
    assert not any(process.is_running() for process in processes)


async def test_what_cannot_begin_is_told_by_whoever_finds_it(root: Path, two: LocalLauncher) -> None:
    order = await order_of(root, "changed", 2)
    write_rows(root / "train.jsonl", questions(15))
    seen = await events(await two.launch(order))
    assert any(isinstance(event, Failed) and "train.jsonl changed since" in event.error for event in seen)
