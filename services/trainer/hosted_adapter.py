"""What a provider made, as an adapter: a folder with a manifest and no weights. Knows no connection."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from services.trainer import manifest
from services.trainer.domain import Adapter, DatasetReport, Order, Progress
from services.trainer.hosted_client import Metric, ProviderJob
from services.trainer.records import spec_json

ROWS = "tunetrial_rows"
"""Key of a provider's job's metadata: how many rows it learns from, so that whoever finds the job need not read them again."""
_LAST = 0.9
"""From this share of the steps on, losses count for the loss at the end."""


def dataset_of(job: ProviderJob) -> DatasetReport:
    """What is known of its data: the rows. What it cuts and how it counts tokens, the provider does not tell."""
    rows = job.metadata.get(ROWS, "")
    return DatasetReport(int(rows) if rows.isdecimal() else 0, 0, 0, 0, 0)


def progress_of(job: ProviderJob, told: Mapping[int, Metric]) -> Progress:
    """How far it is, by what the provider told of its steps."""
    if not told:
        return Progress()
    steps = sorted(told)
    newest = told[steps[-1]]
    ended = job.finished is not None
    remaining = 0.0 if ended else None if job.expected_end is None else max(0.0, job.expected_end - time.time())
    evaluated = [told[step].evaluation_loss for step in steps if told[step].evaluation_loss is not None]
    return Progress(
        step=newest.step,
        step_count=max(metric.step_count for metric in told.values()),
        loss=newest.loss,
        evaluation_loss=evaluated[-1] if evaluated else None,
        remaining_s=remaining,
    )


def publish(order: Order, job: ProviderJob, told: Mapping[int, Metric]) -> Adapter:
    """Gives the adapter its folder, at once and for good. Raises OSError, FileExistsError when another job has the name."""
    spec, progress = order.spec, progress_of(job, told)
    losses = [metric.loss for metric in told.values() if metric.loss is not None and metric.step > _LAST * progress.step]
    adapter = Adapter(
        name=spec.adapter_name,
        uri=f"{manifest.HOSTED}{job.model}",
        base=spec.base,
        base_sha256="",
        weights_sha256="",
        dataset_sha256=order.inputs.dataset_sha256,
        job_id=order.job_id,
        final_loss=fmean(losses) if losses else None,
        trained_tokens=job.trained_tokens or 0,
        training_s=max(0.0, (job.finished or time.time()) - job.created),
        dataset=dataset_of(job),
        library_versions={"python": platform.python_version(), "openai": version("openai")},
        create_time=datetime.now(UTC),
        evaluation_loss=progress.evaluation_loss,
    )
    more = {
        "work": order.work,
        "seed": spec.seed,
        "recipe": spec_json(spec),
        "evaluation_sha256": order.inputs.evaluation_sha256,
        "provider": {"url": order.inputs.provider, "job": job.id, "model": job.model, "hyperparameters": dict(job.hyperparameters)},
        "metrics": [asdict(told[step]) for step in sorted(told)],
    }
    # In the trainer's own folder, where others go to a store too: there are no weights to be brought anywhere.
    adapters = Path(order.adapters_dir)
    # What an attempt that was killed here left, perhaps by a process of this very number.
    manifest.AdapterFiles(adapters).discard_partial(order.job_id)
    partial = manifest.partial_folder(adapters, order.job_id)
    manifest.write(partial, adapter, more)
    manifest.publish(partial, adapters / spec.adapter_name, order.job_id)
    return adapter
