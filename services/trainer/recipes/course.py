"""The course of a training that all recipes share: the trainer's arguments, the order of examples, and a run that goes on where it was
interrupted. Knows no method of training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from services.common.errors import FailedPrecondition
from services.trainer.domain import Event, Order
from services.trainer.recipes.base import precision
from services.trainer.recipes.checkpoints import KEPT, Checkpointing, check_room, newest
from services.trainer.recipes.progress import ProgressReporter


def arguments(order: Order) -> dict[str, Any]:
    """The order's course as TRL's configurations take it."""
    cuda, course = torch.cuda.is_available(), order.spec.course
    checkpointing = course.gradient_checkpointing
    at_once, times = order.spec.divided(order.processes)
    return {
        "output_dir": order.checkpoints_dir,
        "seed": order.spec.seed,
        "num_train_epochs": course.epochs or 1,
        "max_steps": course.max_steps or -1,
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": times,
        "learning_rate": course.learning_rate,
        # The library's own "constant" knows no warm-up.
        "lr_scheduler_type": "constant_with_warmup" if course.schedule == "constant" else course.schedule,
        # Below 1 it is a share of the steps, from 1 on a number of steps.
        "warmup_steps": min(course.warmup_ratio, 1 - 1e-9),
        "weight_decay": course.weight_decay,
        "max_grad_norm": course.max_gradient_norm,
        "eval_strategy": "no" if order.inputs.evaluation_path is None else "epoch",
        # Checkpoints to go on from are asked for by the clock; those of epochs are kept to come back to the best.
        "save_strategy": "epoch" if course.evaluates else "no",
        "save_total_limit": KEPT,
        "load_best_model_at_end": course.keep_best,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": 1,
        # A loss that is not a number must be seen, not averaged away.
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "ddp_backend": None if cuda or order.processes == 1 else "gloo",
        "bf16": precision(course) is torch.bfloat16,
        # Saves memory for a fifth of the speed: worth it where memory is the GPU's.
        "gradient_checkpointing": cuda if checkpointing is None else checkpointing,
    }


class LengthOrder(torch.utils.data.Sampler[int]):
    """Examples of like length go together, so that little is padding; batches come in random order, after one with the longest example,
    so that what is too long for the memory is known at once.

    The order depends on seed and epoch alone, whatever was drawn before: a run that goes on in mid-epoch sees the rest of the same order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        """`batch_size` in examples a step; `epoch` tells the epoch that begins."""
        self._lengths, self._batch_size, self._seed, self._epoch = list(lengths), batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed << 20) + self._epoch())
        indices: list[int] = get_length_grouped_indices(self._lengths, self._batch_size, generator=generator)  # type: ignore[no-untyped-call]
        first, *others = (indices[at : at + self._batch_size] for at in range(0, len(indices), self._batch_size))
        # One that is not full stays the last.
        last = others.pop() if others and len(others[-1]) < self._batch_size else []
        order = torch.randperm(len(others), generator=generator).tolist()
        return chain(first, *(others[at] for at in order), last)


class Course:
    """To be put before a trainer of TRL: takes examples in LengthOrder, and goes on with weights of the same type."""

    state: Any
    model: Any

    def __init__(self, *, lengths: Sequence[int], order: Order, **more: Any) -> None:
        self._lengths, self._order = lengths, order
        super().__init__(**more)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # PEFT makes float32 of what it loads; adapters over four bits are learnt in bfloat16.
        types = {name: weights.dtype for name, weights in self.model.named_parameters() if weights.requires_grad}
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]  # TRL's trainers have it
        for name, weights in self.model.named_parameters():
            if name in types:
                weights.data = weights.data.to(types[name])

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthOrder:
        return LengthOrder(self._lengths, self._order.spec.course.batch_size, self._order.spec.seed, lambda: int(self.state.epoch or 0))


class Patience(TrainerCallback):
    """Ends training once the evaluation loss has not fallen for so many epochs.

    By the history that checkpoints hold; the library's own callback forgets its count when a run goes on.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks back."""
        losses = [log["eval_loss"] for log in state.log_history if "eval_loss" in log]
        if len(losses) - 1 - losses.index(min(losses)) >= self._epochs:
            control.should_training_stop = True


@dataclass(frozen=True, slots=True)
class Watch:
    """What looks on while a trainer trains."""

    progress: ProgressReporter
    checkpoints: Checkpointing
    callbacks: list[TrainerCallback]
    """All of it, for the trainer."""
    reports: list[Any]
    """Those of them that tell others."""


def watch(order: Order, report: Callable[[Event], None]) -> Watch:
    """For one trainer of this order."""
    progress, patience = ProgressReporter(report), order.spec.course.patience
    checkpoints = Checkpointing(order.checkpoint_s, progress.saved)
    # Patience comes before checkpoints: a run that it ends is not to be written down as interrupted.
    reports = _reports(order)
    return Watch(progress, checkpoints, [*([] if patience is None else [Patience(patience)]), progress, checkpoints, *reports], reports)


def _reports(order: Order) -> list[Any]:
    lacking = [name for name in order.report_to if find_spec(name) is None]
    if lacking:
        message = "TUNETRIAL_REPORT_TO needs {names}: install it where jobs run"
        raise FailedPrecondition("LIBRARY_MISSING", message, names=", ".join(lacking))
    if not order.report_to:
        return []
    # The libraries take seconds, and threads.
    from services.trainer.recipes.reports import REPORTS  # noqa: PLC0415

    return [REPORTS[name](order) for name in order.report_to]


def run(trainer: Any, order: Order, watch: Watch) -> None:
    """Trains to the end, from the newest whole checkpoint on; `watch` is the trainer's.

    Raises FailedPrecondition DISK_FULL before the first step, InterruptedError when the process was told to end before the last; then a
    checkpoint holds where it stood.
    """
    # Steps are reported; printed as well, they would bury what went wrong in the log.
    trainer.remove_callback(PrinterCallback)
    folder = Path(order.checkpoints_dir)
    begun = newest(folder, order.spec.course.keep_best)
    check_room(folder, sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad))
    try:
        with watch.checkpoints.heeding_signals():
            trainer.train(resume_from_checkpoint=None if begun is None else str(begun))
    except Exception:
        for report in watch.reports:
            report.close(failed=True)
        if begun is not None and not watch.progress.begun:
            # It cannot be read, and is not to be in the way of the next attempt.
            shutil.rmtree(begun, ignore_errors=True)
        raise
    if watch.checkpoints.interrupted:
        raise InterruptedError
