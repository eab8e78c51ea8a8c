"""Brings adapters to an engine on Kubernetes that takes them only at its start: a new start list for its workload, and new pods.

The workload's own LORA_ADAPTERS is the truth about what is listed. It is changed on the condition that nobody else changed the workload
meanwhile, and put back when its pods do not get ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from kubernetes_asyncio import client, config

from services.common.errors import FailedPrecondition, TunetrialError, Unavailable
from services.common.kubernetes import Connection, away, reaching, said
from services.generator.engine_settings import KubernetesSettings

_log = structlog.get_logger()

_VARIABLE = "LORA_ADAPTERS"
_KINDS = {"StatefulSet": "stateful_set", "Deployment": "deployment"}
_PATCH = "application/strategic-merge-patch+json"
_DENIED, _NOT_FOUND, _CONFLICT = (401, 403), 404, 409
_MARKS = frozenset(",=@")
"""What has a meaning in a start list."""
_TRIES = 5
_POLL_S, _CALL_S, _CLOSE_S = 2.0, 30.0, 10.0


class KubernetesRollout:
    """One workload that runs the replicas of an engine. Its service account gets, patches and deletes as docs/generator.md says."""

    def __init__(self, settings: KubernetesSettings, poll_s: float = _POLL_S) -> None:
        """Contacts nothing."""
        self._settings, self._poll_s = settings, poll_s
        self._connection = Connection(settings.namespace)
        self._undoing: asyncio.Task[str] | None = None
        self._what = f"{settings.kind} {settings.name}"

    async def add(self, base: str, listed: Sequence[str], adapter: str, path: str) -> None:
        """Returns when all pods run with the adapter, at once where the workload lists it already.

        Raises FailedPrecondition ENGINE_ROLLOUT_FAILED when they do not get ready, with the list as it was, and Unavailable
        KUBERNETES_UNAVAILABLE.
        """
        if _MARKS & set(path):
            message = "{path} cannot stand in {variable}: rename the folder"
            raise FailedPrecondition("ADAPTER_REFUSED", message, path=path, variable=_VARIABLE)
        entry = f"{adapter}={path}"
        before = _start_list(self._container(await self._read())).get(adapter)
        if before == entry:
            return  # whether the pods have it shows in the proof
        try:
            await self._set(adapter, entry)
            await self._settled()
        except BaseException as error:
            # Who goes does not wait for the pods, only for the list.
            self._undoing = asyncio.create_task(self._put_back(adapter, before, wait=not isinstance(error, asyncio.CancelledError)))
            worse = await asyncio.shield(self._undoing)
            if worse and isinstance(error, TunetrialError):
                raise self._failed(f"{error.message}; and the way back failed: {worse}") from error
            raise

    async def remove(self, adapter: str) -> None:
        """Returns when all pods run without the adapter, which stays off the list in any case. Errors: those of `add`."""
        if await self._unset(adapter, None):
            await self._settled(back=True)

    async def close(self) -> None:
        """Closes the connections, after what is being put back."""
        if self._undoing is not None:
            await asyncio.wait({self._undoing}, timeout=_CLOSE_S)
        await self._connection.close()

    async def _put_back(self, adapter: str, before: str | None, *, wait: bool) -> str:
        """The entry as it was, and pods that run with it if `wait`. What went wrong, "" when nothing did."""
        try:
            if await self._unset(adapter, before) and wait:
                await self._settled(back=True)
        except TunetrialError as error:
            _log.error("an engine's start list could not be put back", workload=self._what, adapter=adapter, error=error.message)
            return error.message
        return ""

    async def _unset(self, adapter: str, entry: str | None) -> bool:
        """Changes an entry back, and sees to it that pods which never got ready do not stay; whether there was anything to change."""
        stuck = await self._stuck()
        if not await self._set(adapter, entry):
            return False
        for pod in stuck:
            try:
                with self._explained():
                    await (await self._core()).delete_namespaced_pod(pod, self._connection.namespace, _request_timeout=_CALL_S)
            except TunetrialError as error:
                _log.warning("a pod that is not ready could not be deleted", pod=pod, error=error.message)
        return True

    async def _set(self, adapter: str, entry: str | None) -> bool:
        """Changes one entry of the start list (None takes it out) and no other; whether there was anything to change."""
        for _ in range(_TRIES):
            workload = await self._read()
            container = self._container(workload)
            found = _start_list(container)
            wanted = {name: one for name, one in found.items() if name != adapter} | ({adapter: entry} if entry is not None else {})
            if wanted == found:
                return False
            # TGI does not start with a list that is set and empty.
            value = {"value": ",".join(wanted.values())} if wanted else {"$patch": "delete"}
            template = {"spec": {"containers": [{"name": container.name, "env": [{"name": _VARIABLE, **value}]}]}}
            body = {"metadata": {"resourceVersion": workload.metadata.resource_version}, "spec": {"template": template}}
            try:
                await self._call("patch", body=body, _content_type=_PATCH)
            except _Changed:
                continue
            _log.info("an engine starts anew", workload=self._what, adapters=list(wanted))
            return True
        raise self._failed("it is changed by somebody else again and again")

    async def _settled(self, *, back: bool = False) -> None:
        """Returns when all pods are those of the newest list, and ready. Raises FailedPrecondition ENGINE_ROLLOUT_FAILED.

        On the way `back` to the old list, a Deployment still says that the new one came too late.
        """
        deadline = time.monotonic() + self._settings.timeout_s
        while True:
            late = False
            try:
                workload = await self._read()
                # Pods that end may still answer.
                if _is_settled(workload) and not any(pod.metadata.deletion_timestamp for pod in await self._pods(workload)):
                    return
                late = not back and _is_late(workload)
            except Unavailable:  # says nothing about pods
                if time.monotonic() > deadline:
                    raise
            if late or time.monotonic() > deadline:
                raise self._failed(f"its pods did not get ready: {await self._troubles()}")
            await asyncio.sleep(self._poll_s)

    def _container(self, workload: Any) -> Any:
        containers = workload.spec.template.spec.containers
        wanted = self._settings.container
        found = next((one for one in containers if one.name == wanted), None) if wanted else containers[0]
        if found is None:
            raise self._failed(f"it has no container {wanted}")
        if any("--lora-adapters" in part for part in [*(found.command or ()), *(found.args or ())]):
            raise self._failed(f"it lists adapters by --lora-adapters: list them in the variable {_VARIABLE}")
        if not workload.spec.replicas:
            raise self._failed("it is scaled to no replica")
        strategy = getattr(workload.spec, "update_strategy", None)
        if strategy is not None and (strategy.type == "OnDelete" or (strategy.rolling_update and strategy.rolling_update.partition)):
            raise self._failed("its update strategy leaves old pods: set RollingUpdate without a partition")
        return found

    async def _troubles(self) -> str:
        """What the pods say of themselves."""
        found = []
        try:
            for pod in await self._pods(await self._read()):
                states = [status.state for status in pod.status.container_statuses or () if status.state is not None]
                said = [one for state in states if (one := state.waiting or state.terminated) is not None]
                said += [
                    condition
                    for condition in pod.status.conditions or ()
                    if (condition.type, condition.status) == ("PodScheduled", "False")
                ]
                found += [f"{pod.metadata.name}: {one.reason} {one.message or ''}".strip() for one in said]
        except TunetrialError as error:
            return f"they cannot be asked why ({error.message})"
        return "; ".join(found) or "they do not say why"

    async def _stuck(self) -> list[str]:
        """Pods of a StatefulSet that are not ready, for which it waits before it goes on; none where they cannot be asked for."""
        if self._settings.kind != "StatefulSet":
            return []
        try:
            pods = await self._pods(await self._read())
        except TunetrialError as error:
            _log.warning("pods that are not ready cannot be told", workload=self._what, error=error.message)
            return []
        return [pod.metadata.name for pod in pods if not _is_ready(pod)]

    async def _pods(self, workload: Any) -> list[Any]:
        labels = ",".join(f"{name}={value}" for name, value in (workload.spec.selector.match_labels or {}).items())
        if not labels:
            raise self._failed("its selector has no labels")
        with self._explained():
            found = await (await self._core()).list_namespaced_pod(
                self._connection.namespace, label_selector=labels, _request_timeout=_CALL_S
            )
        if self._settings.kind == "Deployment":  # whose pods belong to its replica sets
            return list(found.items)
        return [pod for pod in found.items if any(owner.uid == workload.metadata.uid for owner in pod.metadata.owner_references or ())]

    async def _core(self) -> client.CoreV1Api:
        return client.CoreV1Api(await self._connection.client())

    async def _read(self) -> Any:
        return await self._call("read")

    async def _call(self, verb: str, **given: Any) -> Any:
        with self._explained():
            apps = client.AppsV1Api(await self._connection.client())
            call = getattr(apps, f"{verb}_namespaced_{_KINDS[self._settings.kind]}")
            return await call(self._settings.name, self._connection.namespace, _request_timeout=_CALL_S, **given)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with reaching():
                yield
        except client.ApiException as error:
            if error.status == _CONFLICT:
                raise _Changed("ENGINE_ROLLOUT_FAILED", "{what} was changed meanwhile", what=self._what) from error
            if error.status in _DENIED:
                raise self._failed(f"the generator's service account may not do it ({said(error)})") from error
            if error.status == _NOT_FOUND:
                raise self._failed("it is not there") from error
            raise away(said(error)) from error
        except config.ConfigException as error:
            raise self._failed(f"there is no way to the cluster: {error}") from error

    def _failed(self, why: str) -> FailedPrecondition:
        message = "{what} in namespace {namespace} cannot be started with other adapters: {why}"
        return FailedPrecondition("ENGINE_ROLLOUT_FAILED", message, what=self._what, namespace=self._connection.namespace, why=why)


class _Changed(FailedPrecondition):
    """Somebody else changed the workload since it was read."""


def _start_list(container: Any) -> dict[str, str]:
    """Entries by the adapters' names. An entry is `name=path`, or a name on the hub alone."""
    variable = next((one for one in container.env or () if one.name == _VARIABLE), None)
    if variable is not None and variable.value_from is not None:
        raise FailedPrecondition("ENGINE_ROLLOUT_FAILED", "{name} comes from elsewhere: give it a value in the workload", name=_VARIABLE)
    entries = (variable.value or "").split(",") if variable is not None else []
    return {entry.partition("=")[0].strip(): entry.strip() for entry in entries if entry.strip()}


def _is_settled(workload: Any) -> bool:
    status, wanted = workload.status, workload.spec.replicas
    if (status.observed_generation or 0) < workload.metadata.generation:
        return False
    # Pods of the old list are counted in `replicas`; of a StatefulSet they have the old revision.
    same = {status.replicas, status.updated_replicas, status.ready_replicas} == {wanted}
    return same and getattr(status, "current_revision", None) == getattr(status, "update_revision", None)


def _is_late(workload: Any) -> bool:
    if (workload.status.observed_generation or 0) < workload.metadata.generation:
        return False
    return any(one.type == "Progressing" and one.reason == "ProgressDeadlineExceeded" for one in workload.status.conditions or ())


def _is_ready(pod: Any) -> bool:
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
