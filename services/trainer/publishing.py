"""Where a training process puts what it made: a folder of this machine, or an object store. Knows no training.

What goes to a store is kept, whole, beside the checkpoints until the job has ended. So a process that is killed while it uploads, or finds
the store away, has lost nothing: the next one of the same work uploads, and trains nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from services.common.errors import FailedPrecondition, Unavailable
from services.trainer import manifest
from services.trainer.domain import Adapter, DatasetRead, Event, Order, Progress, Progressed
from services.trainer.manifest import MANIFEST, AdapterFiles
from services.trainer.records import ADAPTER
from services.trainer.stored_adapters import StoredAdapters, Upload, uri_of

_FINISHED = "finished"


def adapters_of(order: Order) -> AdapterFiles | StoredAdapters:
    """Where this order's adapter is published."""
    local = AdapterFiles(Path(order.adapters_dir))
    return local if order.store is None else StoredAdapters(order.store, local)


def partial_folder(order: Order) -> Path:
    """A new folder for what is in the making. Raises OSError."""
    if order.store is None:
        return manifest.partial_folder(Path(order.adapters_dir), order.job_id)
    # One of an earlier attempt is of no use to anybody.
    AdapterFiles(Path(order.checkpoints_dir)).discard_partial()
    return manifest.partial_folder(Path(order.checkpoints_dir), order.job_id)


def final_uri(order: Order) -> str:
    """Where it will be."""
    name = order.spec.adapter_name
    return str(Path(order.adapters_dir) / name) if order.store is None else uri_of(order.store, name)


def publish(order: Order, partial: Path, stays: Callable[[], None]) -> None:
    """Publishes a finished folder; `stays` is told once another process could do the rest.

    Raises OSError, TunetrialError; then nothing is published.
    """
    if order.store is None:
        manifest.publish(partial, Path(order.adapters_dir) / order.spec.adapter_name, order.job_id)
        return
    finished = Path(order.checkpoints_dir) / _FINISHED
    # What an earlier attempt left, of another version of a library say.
    shutil.rmtree(finished, ignore_errors=True)
    manifest.publish(partial, finished, order.job_id)
    stays()
    _upload(order).publish(finished)


def resume(order: Order, report: Callable[[Event], None], leads: bool) -> bool:
    """Publishes what an earlier attempt at the same work trained and could not publish; False where there is nothing of the kind.

    Then looks, before anything is trained, whether there will be a way to publish. Of several processes the first does, as `leads` says.
    Raises FailedPrecondition STORE_REFUSED, LIBRARY_MISSING, AlreadyExists ADAPTER_NAME_TAKEN, Unavailable.
    """
    if order.store is None:
        return False
    finished = Path(order.checkpoints_dir) / _FINISHED
    adapter = _adapter(order, finished, leads)
    if adapter is None:
        if leads:
            _check(order)
        return False
    if leads:
        report(DatasetRead(adapter.dataset))
        steps = json.loads((finished / MANIFEST).read_text(encoding="utf-8")).get("steps", 0)
        report(Progressed(Progress(step=steps, step_count=steps, loss=adapter.final_loss, checkpoint_step=steps)))
        _upload(order).publish(finished)
    return True


def _check(order: Order) -> None:
    try:
        _upload(order).check()
    except Unavailable as error:
        # It may well be there by the time that there is something to publish.
        print(error.message, flush=True)
    except FileNotFoundError as error:
        assert order.store is not None  # noqa: S101  checked before
        raise FailedPrecondition("STORE_REFUSED", "{url}: there is no such bucket", url=order.store.url) from error


def _adapter(order: Order, finished: Path, leads: bool) -> Adapter | None:
    """What waits to be published, now as this job's."""
    try:
        found = json.loads((finished / MANIFEST).read_text(encoding="utf-8"))
        adapter = ADAPTER.validate_python({**found, "job_id": order.job_id, "uri": final_uri(order)})
    except (OSError, ValueError):
        return None
    if found["job_id"] != order.job_id and leads:
        half = finished.with_name(f"{finished.name}.{MANIFEST}")
        half.write_text(json.dumps({**found, "job_id": order.job_id}, indent=1) + "\n", encoding="utf-8")
        half.replace(finished / MANIFEST)
    return adapter


def _upload(order: Order) -> Upload:
    assert order.store is not None  # noqa: S101  whoever asks has looked
    return Upload(order.store, order.spec.adapter_name, order.job_id, order.work)
