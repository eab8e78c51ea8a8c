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
        self.begun = False
        """Whether training began: everything is loaded."""
        self.leads = True
        """Whether this is the first of the processes."""
        self.last = Progress()
        self.kept_step = 0
        """Step whose weights the adapter has."""
        self.kept_evaluation_loss: float | None = None
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
        self.begun = True
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
            self._check(logs["eval_loss"], "evaluation loss", state)
            self._send(evaluation_loss=logs["eval_loss"])
        if "loss" not in logs:
            return
        loss, elapsed, steps = logs["loss"], time.monotonic() - self._began, state.global_step - self._step_before
        self._check(loss, "loss", state)
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

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes which step's weights are kept."""
        self.kept_step, self.kept_evaluation_loss = state.global_step, self.last.evaluation_loss
        if args.load_best_model_at_end:
            self.kept_step, self.kept_evaluation_loss = state.best_global_step, state.best_metric

    def saved(self, step: int) -> None:
        """To be told of a checkpoint."""
        self._send(checkpoint_step=step)

    def _check(self, value: float, what: str, state: Any) -> None:
        if not math.isfinite(value):
            message = "the {what} is no number any more at step {step} of {count}: lower learning_rate, or look for broken rows in the data"
            raise FailedPrecondition("LOSS_NOT_FINITE", message, what=what, step=state.global_step, count=state.max_steps)

    def _send(self, **changes: Any) -> None:
        self.last = replace(self.last, **changes)
        self._report(Progressed(self.last))


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
