"""Checkpoints to go on from: written by the clock and when the process is told to end, taken for whole only once marked so.

Knows no method of training. Adapters of a run that was killed at any moment are equal to those of one that was not (float32 on a CPU).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import distributed
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from services.common.errors import FailedPrecondition

_log = structlog.get_logger()

KEPT = 3
"""Checkpoints that are kept: one of them may be that of the best epoch, and another one cut off while it was written."""
_BESIDE_BYTES = 64 << 20
"""Tokenizers, states of random numbers, histories."""
_WHOLE = "whole.json"
_PREFIX = "checkpoint-"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate")


def newest(folder: Path, keep_best: bool = False) -> Path | None:
    """The last checkpoint that can be gone on from. Others are removed: those that a killed process left, that other versions of the
    libraries wrote, and, with `keep_best`, that know of a better one which is gone.
    """
    whole = []
    for checkpoint in folder.glob(f"{_PREFIX}*"):
        if why := _flaw(checkpoint, keep_best):
            _log.warning("checkpoint is not gone on from", checkpoint=checkpoint.name, why=why)
            shutil.rmtree(checkpoint, ignore_errors=True)
        else:
            whole.append(checkpoint)
    return max(whole, key=lambda checkpoint: int(checkpoint.name.removeprefix(_PREFIX)), default=None)


def _flaw(checkpoint: Path, keep_best: bool) -> str:
    mark = _read(checkpoint / _WHOLE)
    if mark is None:
        return "it was not written to its end"
    if mark != _versions():
        return f"it is of other versions of the libraries: {mark}"
    best = (_read(checkpoint / TRAINER_STATE_NAME) or {}).get("best_global_step")
    if keep_best and best and not (checkpoint.parent / f"{_PREFIX}{best}").is_dir():
        return f"the checkpoint of the best epoch, at step {best}, is gone"
    return ""


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def _read(mark: Path) -> Any:
    try:
        return json.loads(mark.read_bytes())
    except (OSError, ValueError):
        return None


def check_room(folder: Path, trainable_parameters: int) -> None:
    """Raises FailedPrecondition DISK_FULL where checkpoints and an adapter will not fit: better now than after hours."""
    folder.mkdir(parents=True, exist_ok=True)
    # Weights and the two moments of AdamW in float32, as often as checkpoints are kept and once more while one is written; the adapter.
    needed = trainable_parameters * 4 * (3 * (KEPT + 1) + 1) + _BESIDE_BYTES
    needed -= sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = "the disk is full: checkpoints and adapter need about {needed} MiB under the trainer's data_dir, and {free} are free"
        raise FailedPrecondition("DISK_FULL", message, needed=needed >> 20, free=free >> 20)


class Checkpointing(TrainerCallback):
    """Asks the trainer for checkpoints, and marks those that are whole."""

    def __init__(self, every_s: float, saved: Callable[[int], None]) -> None:
        """`saved` is told the step of each."""
        self._every_s, self._saved = every_s, saved
        self._last = time.monotonic()
        self._told_to_end = False
        self.interrupted = False
        """Whether training ended because the process was told to."""

    @contextlib.contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """While it lasts, SIGTERM means: write down where you stand after this step, and end."""
        before = signal.signal(signal.SIGTERM, self._heed)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _heed(self, _number: int, _frame: Any) -> None:
        self._told_to_end = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._last = time.monotonic()
        # The library knows it by its path, and the folder may have been moved.
        if args.load_best_model_at_end and state.best_global_step:
            state.best_model_checkpoint = str(Path(args.output_dir) / f"{_PREFIX}{state.best_global_step}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for a checkpoint when it is time."""
        # After the last step of an epoch comes its evaluation; a checkpoint from before it would skip that, and the draws made for it.
        if not float(state.epoch).is_integer():
            self._ask(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The same, where no evaluation follows."""
        if self.interrupted:
            # In mid-epoch: the library takes this for an end and would evaluate, and save what is saved already.
            control.should_evaluate = control.should_save = False
        elif not control.should_evaluate:
            self._ask(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The same, after an evaluation."""
        self._ask(state, control)

    def _ask(self, state: Any, control: Any) -> None:
        if _is_over(state, control):
            return
        told_to_end, due = _agreed(self._told_to_end, time.monotonic() - self._last >= self._every_s)
        if told_to_end:
            control.should_save = control.should_training_stop = self.interrupted = True
        elif due:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks what was written, once it is on disk."""
        self._last = time.monotonic()
        if distributed.is_initialized():
            distributed.barrier()  # each process writes a part
        # At the end there is nothing to go on with: what is killed while it publishes comes to that end again.
        if not state.is_world_process_zero or (_is_over(state, control) and not self.interrupted):
            return
        folder = Path(args.output_dir) / f"{_PREFIX}{state.global_step}"
        for file in folder.iterdir():
            _sync(file)
        mark = folder / _WHOLE
        mark.write_text(json.dumps(_versions()), encoding="utf-8")
        _sync(mark)
        _sync(folder)
        self._saved(state.global_step)


def _is_over(state: Any, control: Any) -> bool:
    return state.global_step >= state.max_steps or bool(control.should_training_stop)


def _agreed(*wishes: bool) -> list[bool]:
    """What any of the processes wishes: they save and end together."""
    if not distributed.is_initialized():
        return list(wishes)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    agreed = torch.tensor(wishes, dtype=torch.int32, device=device)
    distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
    return [bool(wish) for wish in agreed.tolist()]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
