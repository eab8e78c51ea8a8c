"""Jobs as Jobs of Kubernetes. Knows no queue and no recipe.

A Job is named by the job's id, so that launching it again after a restart finds the one that runs. When the service goes its Jobs go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from services.common.errors import AlreadyExists, FailedPrecondition, NotFound, TunetrialError, Unavailable
from services.trainer.domain import Order
from services.trainer.kubernetes_api import KubernetesApi
from services.trainer.kubernetes_manifest import JOB_LABEL, job_manifest, job_name, labels_of, service_manifest
from services.trainer.kubernetes_run import KubernetesRun, Timing
from services.trainer.kubernetes_settings import KubernetesTraining
from services.trainer.kubernetes_state import end_of, is_ours
from services.trainer.manifest import AdapterFiles
from services.trainer.spec import TrainingSpec

_log = structlog.get_logger()
_POLL_S, _STOP_S, _CLOSE_S = 2.0, 2.5, 5.0


class KubernetesLauncher:
    """Makes Jobs, finds them again and deletes them. Needs to be closed."""

    def __init__(self, settings: KubernetesTraining, cancel_grace_s: float, poll_s: float = _POLL_S) -> None:
        """Contacts nothing."""
        self._settings = settings
        self._timing = Timing(poll_s, cancel_grace_s, cancel_grace_s + _STOP_S)
        self._api = KubernetesApi(settings.namespace)
        self.leaving = False
        """Whether the service ends, and Jobs outlive it."""
        self._removals: set[asyncio.Task[None]] = set()
        self._launched: set[str] = set()
        """uids of Jobs that an attempt was made of here."""

    @property
    def has_cuda(self) -> bool:
        """Whether jobs find a CUDA device."""
        return self._settings.has_gpus

    @property
    def processes(self) -> int:
        """How many share the batch of a job."""
        return self._settings.processes

    def leave(self) -> None:
        """From now on a Job that may have been made stays for the next service, and so does what its pods write."""
        self.leaving = True

    def takes_slot(self, spec: TrainingSpec) -> bool:
        """Slots say how many Jobs the cluster is given at once."""
        return True

    async def launch(self, order: Order) -> KubernetesRun:
        """The job's Job: the one that runs already, or a new one. Waits while the API is away. May be cancelled.

        Raises FailedPrecondition PATH_NOT_ON_VOLUME, KUBERNETES_REFUSED, KUBERNETES_NAME_TAKEN.
        """
        manifest = job_manifest(order, self._settings)
        try:
            job = await self._patiently(order.job_id, manifest)
        except asyncio.CancelledError:
            # It may have been made although no answer came, and a Job that nobody follows would train for nobody.
            if not self.leaving:
                self._remove(order.job_id)
            raise
        self._launched.add(job["metadata"]["uid"])
        return KubernetesRun(self._api, job, self._settings, self._timing, partial(self._remove, order.job_id))

    def drop(self, job_id: str) -> None:
        """Begins to delete the Job that an earlier service, with more slots, may have made."""
        self._remove(job_id)

    async def close(self) -> None:
        """Closes the connections, after what is being deleted."""
        if self._removals:
            await asyncio.wait(self._removals, timeout=_CLOSE_S)
        left = list(self._removals)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._api.close()

    async def _patiently(self, job_id: str, manifest: dict[str, Any]) -> dict[str, Any]:
        complaint = ""
        while True:
            try:
                job = await self._make(job_id, manifest)
                if job is not None:
                    return job
            except Unavailable as error:
                if error.message != complaint:
                    _log.warning("a job cannot be started yet", job=job_id, error=error.message)
                complaint = error.message
            await asyncio.sleep(self._timing.poll_s)

    async def _make(self, job_id: str, manifest: dict[str, Any]) -> dict[str, Any] | None:
        """The Job, with all that belongs to it; None while an older one is in the way."""
        # First, so that nothing is made that cannot be followed afterwards.
        await self._api.get("pods", {"labelSelector": f"{JOB_LABEL}={job_id}"})
        try:
            job = await self._api.create("jobs", manifest)
            _log.info("job was given to Kubernetes", job=job_id, name=job["metadata"]["name"], namespace=self._api.namespace)
        except AlreadyExists:
            found = await self._adopt(job_id)
            if found is None:
                return None
            job = found
        if self._settings.nodes > 1:
            try:
                with contextlib.suppress(AlreadyExists):
                    await self._api.create("services", service_manifest(job))
            except FailedPrecondition:
                self._remove(job_id)
                raise
        return job

    async def _adopt(self, job_id: str) -> dict[str, Any] | None:
        name = job_name(job_id)
        try:
            job = await self._api.get(f"jobs/{name}")
        except NotFound:
            return None
        if not is_ours(job, job_id):
            message = "the Job {name} in namespace {namespace} was not made by this trainer: delete it, or set another namespace"
            raise FailedPrecondition("KUBERNETES_NAME_TAKEN", message, name=name, namespace=self._api.namespace)
        if job["metadata"].get("deletionTimestamp"):
            return None
        # One that ended while nobody looked has things to tell, once. After that another attempt is wanted.
        if job["metadata"]["uid"] in self._launched and end_of(job, ()) is not None:
            await self._delete(job_id)
            return None
        _log.info("job runs in Kubernetes already", job=job_id, name=name, namespace=self._api.namespace)
        return job

    def _remove(self, job_id: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._removed(job_id))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)
        return task

    async def _removed(self, job_id: str) -> None:
        """Returns once the Job is being deleted, however long the API is away."""
        while True:
            try:
                return await self._delete(job_id)
            except Unavailable as error:
                _log.warning("a job cannot be deleted yet", job=job_name(job_id), error=error.message)
            except TunetrialError as error:
                _log.error("a job cannot be deleted: delete it by hand", job=job_name(job_id), error=error.message)
                return None
            except asyncio.CancelledError:
                _log.error("a job may not be deleted: look for it by hand", job=job_name(job_id))
                raise
            await asyncio.sleep(self._timing.poll_s)

    async def _delete(self, job_id: str) -> None:
        name = job_name(job_id)
        try:
            job = await self._api.get(f"jobs/{name}")
            if not is_ours(job, job_id):
                return
            # In the foreground: as long as a pod is left there is a Job, and no second one can be made.
            uid = {"uid": job["metadata"]["uid"]}
            await self._api.delete(f"jobs/{name}", propagationPolicy="Foreground", preconditions=uid)
        except (NotFound, AlreadyExists):
            return
        try:
            await self._hurry(job_id)
        except FailedPrecondition as error:
            _log.warning("the pods of a deleted job take their own time to end", job=name, error=error.message)

    async def _hurry(self, job_id: str) -> None:
        """Gives its pods the time of a cancelled job. Otherwise they would take what they have to save a checkpoint."""
        selector = ",".join(f"{name}={value}" for name, value in labels_of(job_id).items())
        for pod in (await self._api.get("pods", {"labelSelector": selector}))["items"]:
            with contextlib.suppress(NotFound):
                await self._api.delete(f"pods/{pod['metadata']['name']}", gracePeriodSeconds=max(1, round(self._timing.grace_s)))


class PodAdapters(AdapterFiles):
    """Adapters that pods make. Nothing is discarded of a job whose pods may be at it; each pod clears away what one before it left."""

    def __init__(self, adapters_dir: Path, launcher: KubernetesLauncher) -> None:
        super().__init__(adapters_dir)
        self._launcher = launcher

    def discard_partial(self, job_id: str | None = None) -> None:
        """Removes what an unfinished job left behind; asked for all jobs, as at the start, nothing."""
        if job_id is not None and not self._launcher.leaving:
            super().discard_partial(job_id)
