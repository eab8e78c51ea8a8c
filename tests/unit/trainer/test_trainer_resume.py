"""Training that is interrupted at any step goes on to the very adapter that it would have made (float32 on a CPU)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.common.errors import FailedPrecondition
from services.trainer import manifest
from services.trainer.domain import Adapter, Event, Order, Progressed
from services.trainer.recipes import sft
from services.trainer.recipes.checkpoints import newest
from services.trainer.spec import Lora, Optimization
from tests.unit.trainer.test_trainer_sft import order_of, root  # noqa: F401  a fixture

COURSE = Optimization.given(batch_size=4, micro_batch_size=2, epochs=4.0, learning_rate=1e-2)
LORA = Lora.given(rank=2, dropout=0.2)
STEPS = 12
"""Four epochs of ten rows."""


class Killed(BaseException):
    """Stands for the end of the process: nothing in the recipe heeds it."""


async def made(root: Path, name: str, evaluation: bool, course: Optimization = COURSE) -> Order:  # noqa: F811
    order = await order_of(root, name, str(root / "evaluation.jsonl") if evaluation else "", lora=LORA, course=course)
    return replace(order, checkpoint_s=1e-9)


def train(order: Order, heed: Callable[[Progressed], None] = lambda _: None) -> Adapter:
    def report(event: Event) -> None:
        if isinstance(event, Progressed):
            heed(event)

    adapter = sft.train(order, report)
    assert adapter is not None
    return adapter


@pytest.mark.parametrize("evaluation", [False, True])
async def test_killed_at_any_steps_a_run_ends_in_the_weights_of_an_undisturbed_one(root: Path, evaluation: bool) -> None:  # noqa: F811
    whole = train(await made(root, "whole", evaluation))
    order = await made(root, "killed", evaluation)
    draw = random.Random(evaluation)  # noqa: S311  no secret
    began_at = []
    for at in sorted(draw.sample(range(1, STEPS), 5)):

        def kill(event: Progressed, at: int = at) -> None:
            if event.progress.step >= at:
                raise Killed

        with pytest.raises(Killed):
            train(order, kill)
        torch.rand(3)  # Another process has another state.
        before = newest(Path(order.checkpoints_dir))
        began_at.append(0 if before is None else int(before.name.rpartition("-")[2]))
    assert began_at == sorted(began_at)
    assert began_at[-1] > 0
    seen: list[int] = []
    again = train(order, lambda event: seen.append(event.progress.step))
    assert seen[0] == began_at[-1]
    assert again.weights_sha256 == whole.weights_sha256
    assert (again.final_loss, again.trained_tokens) == (whole.final_loss, whole.trained_tokens)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a CPU each run computes the same")
async def test_over_four_bits_as_well(root: Path) -> None:  # noqa: F811
    four_bit = Lora.given(rank=2, dropout=0.2, four_bit=True)
    orders = [await order_of(root, name, lora=four_bit, course=COURSE) for name in ("whole", "killed")]
    whole, killed = (replace(order, checkpoint_s=1e-9, four_bit_on_cpu=True) for order in orders)

    def kill(event: Progressed) -> None:
        if event.progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(killed, kill)
    assert train(killed).weights_sha256 == train(whole).weights_sha256


@pytest.mark.parametrize(("evaluation", "at"), [(False, 5), (True, 5), (True, 6)], ids=["alone", "evaluating", "at-an-epoch-end"])
async def test_told_to_end_it_writes_down_where_it_stands(root: Path, evaluation: bool, at: int) -> None:  # noqa: F811
    course = replace(COURSE, keep_best=evaluation, patience=3 if evaluation else None)
    whole = train(await made(root, "whole", evaluation, course))
    order = replace(await made(root, "told", evaluation, course), checkpoint_s=3600.0)
    evaluated, told = dict[float, int](), list[int]()

    def tell(event: Progressed) -> None:
        if event.progress.evaluation_loss is not None:
            evaluated.setdefault(event.progress.evaluation_loss, event.progress.step)
        if event.progress.step == at and not told:
            told.append(at)
            os.kill(os.getpid(), signal.SIGTERM)

    saved: list[int] = []
    with pytest.raises(InterruptedError):
        train(order, lambda event: (tell(event), saved.append(event.progress.checkpoint_step))[0])
    assert saved[-1] in (at, at + 1)
    # It did not stop to evaluate half an epoch.
    assert not [step for step in evaluated.values() if step % 3]
    assert not manifest.AdapterFiles(root / "adapters").exists("told")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert train(order).weights_sha256 == whole.weights_sha256


async def test_a_checkpoint_that_is_not_whole_is_not_gone_on_from(root: Path) -> None:  # noqa: F811
    order = await made(root, "cut", evaluation=False)

    def kill(event: Progressed) -> None:
        if event.progress.step == 6:
            raise Killed

    with pytest.raises(Killed):
        train(order, kill)
    folder = Path(order.checkpoints_dir)
    last = newest(folder)
    assert last is not None
    assert last.name == "checkpoint-5"
    (last / "whole.json").unlink()
    # Another version of a library may read it otherwise.
    (folder / "checkpoint-4" / "whole.json").write_text('{"torch": "1.0"}')
    seen: list[int] = []
    train(order, lambda event: seen.append(event.progress.step))
    assert seen[0] == 3


async def test_the_best_epoch_is_kept_and_patience_ends_a_course_that_gets_worse(root: Path) -> None:  # noqa: F811
    course = replace(COURSE, epochs=30.0, learning_rate=0.05, keep_best=True, patience=2)
    order = await made(root, "best", evaluation=True, course=course)
    losses: list[float] = []

    def heed(event: Progressed) -> None:
        loss = event.progress.evaluation_loss
        if loss is not None and (not losses or losses[-1] != loss):
            losses.append(loss)

    train(order, heed)
    assert 3 <= len(losses) < 30
    assert losses.index(min(losses)) == len(losses) - 3


async def test_a_disk_that_will_be_full_is_seen_before_the_first_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    order = await made(root, "full", evaluation=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 30 << 20))  # type: ignore[attr-defined]
    with pytest.raises(FailedPrecondition, match=r"need about 64 MiB under the trainer's data_dir, and 30 are free") as full:
        train(order, lambda _: pytest.fail("it began"))
    assert full.value.reason == "DISK_FULL"


async def test_killed_while_it_publishes_it_comes_to_the_same_end_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    course = replace(COURSE, epochs=30.0, learning_rate=0.05, keep_best=True, patience=2)
    whole = train(await made(root, "whole", evaluation=True, course=course))
    order = await made(root, "killed", evaluation=True, course=course)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(sft, "publish", killed)
        train(order)
    again = train(order)
    assert (again.weights_sha256, again.trained_tokens) == (whole.weights_sha256, whole.trained_tokens)
    told = json.loads((root / "adapters" / "killed" / "manifest.json").read_text())
    assert told["step"] < told["steps"]


def lose_all_but_the_newest(folder: Path) -> None:
    last = newest(folder)
    assert last is not None
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint != last:
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize("lost", [False, True], ids=["moved", "lost"])
async def test_the_best_epoch_is_found_again_or_learnt_again(root: Path, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:  # noqa: F811
    course = replace(COURSE, epochs=30.0, learning_rate=0.05, keep_best=True, patience=2)
    whole = train(await made(root, "whole", evaluation=True, course=course))
    order = await made(root, "killed", evaluation=True, course=course)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(sft, "publish", killed)
        train(order)
    folder, moved = Path(order.checkpoints_dir), root / "elsewhere"
    if lost:
        lose_all_but_the_newest(folder)
    shutil.move(folder, moved)
    assert train(replace(order, checkpoints_dir=str(moved))).weights_sha256 == whole.weights_sha256


async def test_a_checkpoint_that_cannot_be_read_is_not_in_the_way_twice(root: Path) -> None:  # noqa: F811
    order = await made(root, "rotten", evaluation=False)

    def kill(event: Progressed) -> None:
        if event.progress.step == 6:
            raise Killed

    with pytest.raises(Killed):
        train(order, kill)
    last = newest(Path(order.checkpoints_dir))
    assert last is not None
    (last / "optimizer.pt").write_bytes(b"rot")
    with pytest.raises(Exception, match=r".+"):  # whatever the library says of it
        train(order)
    seen: list[int] = []
    train(order, lambda event: seen.append(event.progress.step))
    assert seen[0] == 4
