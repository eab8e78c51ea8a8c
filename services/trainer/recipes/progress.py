"""The trainer's logs as progress, and what the manifest says of the course. Knows no method of training."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback

from services.common.errors import FailedPrecondition
from services.trainer.domain import Event, Progress, Progressed

_SECONDS = "training_s"


class ProgressReporter(TrainerCallback):
    """Goes on with the figures of a run that was interrupted: they are in the history that checkpoints hold."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._losses: list[float] = []
        self._began = 0.0
        self._step_before = self._tokens_before = 0
        self._seconds_before = 0.0
        self.leads = True
        """Whether this is the first of the processes."""
        self.last = Progress()
        self.tokens = 0
        self.seconds = 0.0
        """How long training took, loading not counted."""

    @property
    def final_loss(self) -> float:
        """Mean over the last tenth of the steps, at least one."""
        tail = self._losses[-math.ceil(len(self._losses) / 10) :]
        return sum(tail) / len(tail)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.leads = state.is_world_process_zero
        steps = [log for log in state.log_history if "loss" in log]
        self._losses = [log["loss"] for log in steps]
        evaluations = [log["eval_loss"] for log in state.log_history if "eval_loss" in log]
        if steps:
            self.tokens = self._tokens_before = state.num_input_tokens_seen
            self.seconds = self._seconds_before = steps[-1][_SECONDS]
        self._step_before = state.global_step
        self._began = time.monotonic()
        self.last = Progress(
            step=state.global_step,
            step_count=state.max_steps,
            loss=self._losses[-1] if self._losses else None,
            evaluation_loss=evaluations[-1] if evaluations else None,
            checkpoint_step=state.global_step,
        )
        self._report(Progressed(self.last))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Reports a step or an evaluation. Raises FailedPrecondition LOSS_NOT_FINITE."""
        logs = logs or {}
        if "eval_loss" in logs:
            self._send(evaluation_loss=logs["eval_loss"])
        if "loss" not in logs:
            return
        loss, elapsed, steps = logs["loss"], time.monotonic() - self._began, state.global_step - self._step_before
        if not math.isfinite(loss):
            message = "the loss is no number any more at step {step} of {count}: lower learning_rate, or look for broken rows in the data"
            raise FailedPrecondition("LOSS_NOT_FINITE", message, step=state.global_step, count=state.max_steps)
        self._losses.append(loss)
        self.tokens, self.seconds = state.num_input_tokens_seen, self._seconds_before + elapsed
        state.log_history[-1][_SECONDS] = self.seconds
        self._send(
            step=state.global_step,
            step_count=state.max_steps,
            loss=loss,
            tokens_per_second=(self.tokens - self._tokens_before) / elapsed,
            remaining_s=elapsed / steps * (state.max_steps - state.global_step),
            gradient_norm=logs["grad_norm"],
            learning_rate=logs["learning_rate"],
            peak_memory_mib=_peak_memory_mib(),
        )

    def saved(self, step: int) -> None:
        """To be told of a checkpoint."""
        self._send(checkpoint_step=step)

    def _send(self, **changes: Any) -> None:
        self.last = replace(self.last, **changes)
        self._report(Progressed(self.last))


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
