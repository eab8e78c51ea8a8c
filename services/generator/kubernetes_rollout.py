"""Brings adapters to an engine on Kubernetes that takes them only at its start: a new start list for its workload, and new pods.

The workload's own LORA_ADAPTERS is the truth about what is listed. It is changed on the condition that nobody else changed the workload
meanwhile, and put back when its pods do not get ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from kubernetes_asyncio import client, config

from services.common.errors import FailedPrecondition, TunetrialError, Unavailable
from services.generator.engine_settings import KubernetesSettings

_log = structlog.get_logger()

_VARIABLE = "LORA_ADAPTERS"
_KINDS = {"StatefulSet": "stateful_set", "Deployment": "deployment"}
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PATCH = "application/strategic-merge-patch+json"
_DENIED, _NOT_FOUND, _CONFLICT = (401, 403), 404, 409
_TRIES = 5
_POLL_S = 2.0

_Edit = Callable[[dict[str, str]], dict[str, str]]


class KubernetesRollout:
    """One workload that runs the replicas of an engine. Its service account gets, patches and deletes as docs/generator.md says."""

    def __init__(self, settings: KubernetesSettings, poll_s: float = _POLL_S) -> None:
        """Contacts nothing."""
        self._settings, self._poll_s = settings, poll_s
        self._api: client.ApiClient | None = None
        self._namespace = settings.namespace
        self._what = f"{settings.kind} {settings.name}"

    async def add(self, base: str, listed: Sequence[str], adapter: str, path: str) -> None:
        """Returns when all pods run with the adapter.

        Raises FailedPrecondition ENGINE_ROLLOUT_FAILED when they do not get ready, with the list as it was, and Unavailable
        KUBERNETES_UNAVAILABLE.
        """
        if {",", "="} & set(path):
            message = "{path} cannot stand in {variable}: rename the folder"
            raise FailedPrecondition("ADAPTER_REFUSED", message, path=path, variable=_VARIABLE)
        await self._roll(lambda start_list: start_list | {adapter: f"{adapter}={path}"})

    async def remove(self, base: str, adapter: str) -> None:
        """Returns when all pods run without the adapter. Errors: those of `add`."""
        await self._roll(lambda start_list: {name: entry for name, entry in start_list.items() if name != adapter})

    async def close(self) -> None:
        """Closes the connections."""
        if self._api is not None:
            await self._api.close()

    async def _roll(self, edit: _Edit) -> None:
        before = await self._edit(edit)
        try:
            await self._settled()
        except BaseException as error:
            await asyncio.shield(self._put_back(before, error))
            raise

    async def _put_back(self, before: dict[str, str], error: BaseException) -> None:
        """The old list, and pods that run with it. Where that fails too, the error says so."""
        try:
            with self._explained():
                stuck = await self._unready_pods()
                await self._edit(lambda _: before)
                # A StatefulSet waits for a pod that never gets ready before it replaces it.
                for pod in stuck:
                    with contextlib.suppress(client.ApiException):
                        await client.CoreV1Api(await self._connected()).delete_namespaced_pod(pod, self._namespace)
            await self._settled()
        except TunetrialError as worse:
            _log.error("an engine's start list could not be put back", workload=self._what, error=worse.message)
            if isinstance(error, TunetrialError):
                error.add_note(worse.message)

    async def _edit(self, edit: _Edit) -> dict[str, str]:
        """Changes the start list; what it was before."""
        for _ in range(_TRIES):
            workload = await self._call("read")
            container = self._container(workload)
            found = _start_list(container)
            wanted = edit(found)
            if wanted == found:
                return found
            environment = [{"name": _VARIABLE, "value": ",".join(wanted.values())}]
            template = {"spec": {"containers": [{"name": container.name, "env": environment}]}}
            body = {"metadata": {"resourceVersion": workload.metadata.resource_version}, "spec": {"template": template}}
            try:
                await self._call("patch", body=body, _content_type=_PATCH)
            except _Changed:
                continue
            _log.info("an engine starts anew", workload=self._what, adapters=list(wanted))
            return found
        raise self._failed("it is changed by somebody else again and again")

    async def _settled(self) -> None:
        """Returns when all pods are those of the newest list, and ready. Raises FailedPrecondition ENGINE_ROLLOUT_FAILED."""
        deadline = time.monotonic() + self._settings.timeout_s
        while True:
            workload = await self._call("read")
            if _is_settled(workload):
                return
            conditions = {condition.type: condition for condition in workload.status.conditions or ()}
            progress = conditions.get("Progressing")
            late = progress is not None and progress.reason == "ProgressDeadlineExceeded"
            if late or time.monotonic() > deadline:
                why = "; ".join(await self._troubles()) or "its pods say nothing"
                raise self._failed(f"its pods did not get ready with the new list: {why}")
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
        if strategy is not None and strategy.type == "OnDelete":
            raise self._failed("its update strategy is OnDelete: set RollingUpdate")
        return found

    async def _troubles(self) -> list[str]:
        found = []
        for pod in await self._pods():
            for status in pod.status.container_statuses or ():
                waiting = status.state.waiting if status.state is not None else None
                if waiting is not None:
                    found.append(f"{pod.metadata.name}: {waiting.reason} {waiting.message or ''}".strip())
        return found

    async def _unready_pods(self) -> list[str]:
        def ready(pod: Any) -> bool:
            return any(condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions or ())

        return [pod.metadata.name for pod in await self._pods() if not ready(pod)]

    async def _pods(self) -> list[Any]:
        workload = await self._call("read")
        labels = ",".join(f"{name}={value}" for name, value in (workload.spec.selector.match_labels or {}).items())
        with self._explained():
            found = await client.CoreV1Api(await self._connected()).list_namespaced_pod(self._namespace, label_selector=labels)
        return list(found.items)

    async def _call(self, verb: str, **given: Any) -> Any:
        with self._explained():
            apps = client.AppsV1Api(await self._connected())
            call = getattr(apps, f"{verb}_namespaced_{_KINDS[self._settings.kind]}")
            return await call(self._settings.name, self._namespace, **given)

    async def _connected(self) -> client.ApiClient:
        if self._api is None:
            found = client.Configuration()
            own = _own_namespace(found)
            if own is None:
                await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=found)
            self._namespace = self._namespace or own or "default"
            self._api = client.ApiClient(found)
        return self._api

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:
            if error.status == _CONFLICT:
                raise _Changed("ENGINE_ROLLOUT_FAILED", "{what} was changed meanwhile", what=self._what) from error
            if error.status in _DENIED:
                raise self._failed(f"the generator's service account may not do it ({_said(error)})") from error
            if error.status == _NOT_FOUND:
                raise self._failed("it is not there") from error
            raise self._away(_said(error)) from error
        except config.ConfigException as error:
            raise self._failed(f"there is no way to the cluster: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(f"{type(error).__name__}: {error}") from error

    def _failed(self, why: str) -> FailedPrecondition:
        message = "{what} in namespace {namespace} cannot be started with other adapters: {why}"
        return FailedPrecondition("ENGINE_ROLLOUT_FAILED", message, what=self._what, namespace=self._namespace, why=why)

    def _away(self, why: str) -> Unavailable:
        return Unavailable("KUBERNETES_UNAVAILABLE", "the Kubernetes API does not answer: {why}", why=why, retry_after_s=5)


class _Changed(FailedPrecondition):
    """Somebody else changed the workload since it was read."""


def _own_namespace(configuration: client.Configuration) -> str | None:
    """The namespace of the pod that this is, whose service account is configured then; None outside of a cluster."""
    incluster: Any = config
    try:
        incluster.load_incluster_config(client_configuration=configuration)
        return _NAMESPACE.read_text(encoding="ascii").strip()
    except config.ConfigException:
        return None


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


def _said(error: client.ApiException) -> str:
    return " ".join(str(error.body or error.reason).split())[:500]
