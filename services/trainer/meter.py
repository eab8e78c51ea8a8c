"""Figures of the jobs that run, for Prometheus and other readers of OpenTelemetry. Knows no queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.trainer.domain import Job

_GAUGES = {
    "step": ("1", "Optimiser steps done"),
    "step_count": ("1", "Optimiser steps in all"),
    "checkpoint_step": ("1", "Step from which the job would go on"),
    "loss": ("nat", "Loss at the last step"),
    "evaluation_loss": ("nat", "Loss on the evaluation data"),
    "gradient_norm": ("1", "Norm of the gradient before clipping"),
    "learning_rate": ("1", "Learning rate"),
    "tokens_per_second": ("1/s", "Tokens a second, padding not counted"),
    "peak_memory_mib": ("MiB", "Most memory used so far"),
    "remaining_s": ("s", "Time left, estimated"),
}
"""Fields of Progress: unit and meaning."""


def observe(meter: Meter, running: Callable[[], Iterable[Job]]) -> None:
    """Shows the progress of whatever `running` gives when it is asked; a job that ended is not shown any more."""

    def values(field: str, _options: CallbackOptions) -> Iterator[Observation]:
        for job in running():
            value = getattr(job.progress, field)
            if value is not None:
                yield Observation(value, {"adapter": job.spec.adapter_name})

    for field, (unit, meaning) in _GAUGES.items():
        meter.create_observable_gauge(f"tunetrial_training_{field}", [partial(values, field)], unit=unit, description=meaning)
