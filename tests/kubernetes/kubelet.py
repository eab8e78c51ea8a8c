"""A node with GPUs that are not there: the part of a kubelet that Jobs need, and pods as processes of this machine that really train.

It says that it lives, starts the pods that the scheduler gave it, tells how they end, ends those that are deleted, and serves logs. There
is no network: the name of a pod in a headless Service is known once the Service's endpoints hold it, and stands for this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.kubernetes.container import Container
from tests.kubernetes.control_plane import Api

_LOOK_S, _ALIVE_S = 0.2, 10.0
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_ENDED = ("Succeeded", "Failed")
_addresses = itertools.count(1)


class Kubelet:
    """One node. `start`, then `kill`: there is no gentle end."""

    def __init__(self, api: Api, name: str, folder: Path, certificate: tuple[Path, Path]) -> None:
        self.name = name
        self.pods: dict[str, Container] = {}
        """What ever ran here, by the name of the pod."""
        self._api, self._folder, self._certificate = api, folder / name, certificate
        self._known: dict[str, asyncio.Task[None]] = {}
        self._told_to_end: dict[str, float] = {}
        """When, by the uid of the pod."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, gpus: int, labels: dict[str, str] | None = None, taints: Sequence[dict[str, str]] = ()) -> None:
        """Joins the cluster."""
        app = web.Application()
        app.add_routes([web.get("/containerLogs/{namespace}/{pod}/{container}", self._serve_log)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trust.load_cert_chain(*self._certificate)
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=trust)
        await site.start()
        room = {"cpu": "16", "memory": "64Gi", "pods": "20", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        status = {
            "capacity": room,
            "allocatable": room,
            "conditions": [_condition("Ready")],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._runner.addresses[0][1]}},
        }
        metadata = {"name": self.name, "labels": {"kubernetes.io/hostname": self.name, **(labels or {})}}
        await self._api.create("/api/v1/nodes", {"metadata": metadata, "spec": {"taints": list(taints)}, "status": status})
        await self._say_it_lives()
        self._tasks = [asyncio.create_task(self._stay_alive()), asyncio.create_task(self._look_after_pods())]

    async def kill(self) -> None:
        """As when the power goes: processes are killed, nobody is told, and nobody answers here any more."""
        tasks = [*self._tasks, *self._known.values()]
        for task in tasks:
            task.cancel()
        for container in self.pods.values():
            container.kill()
        await self._runner.cleanup()
        for told in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(told, Exception):
                raise told  # a fault of this kubelet must not pass for one of the trainer

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(_ALIVE_S)
            await self._say_it_lives()

    async def _say_it_lives(self) -> None:
        lease = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": _now()}
        try:
            await self._api.patch(f"{_LEASES}/{self.name}", {"spec": lease})
        except KeyError:
            await self._api.create(_LEASES, {"metadata": {"name": self.name}, "spec": lease})

    async def _look_after_pods(self) -> None:
        while True:
            found = {
                pod["metadata"]["uid"]: pod for pod in await self._api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}")
            }
            for uid, pod in found.items():
                if uid not in self._known:
                    self._known[uid] = asyncio.create_task(self._look_after(pod))
                if pod["metadata"].get("deletionTimestamp"):
                    await self._end(uid, pod)
            await asyncio.sleep(_LOOK_S)

    async def _look_after(self, pod: dict[str, Any]) -> None:
        try:
            await self._run(pod)
        except Exception as fault:
            # It ends the job that waits for it; `kill` raises it.
            await self._tell(pod, {"phase": "Failed", "reason": "FaultOfTheKubelet", "message": repr(fault)})
            raise

    async def _run(self, pod: dict[str, Any]) -> None:
        """From sandbox to the last word."""
        (spec,) = pod["spec"]["containers"]
        assert not spec.get("envFrom"), "this kubelet knows no secrets"
        number = next(_addresses)
        address = f"10.88.{number // 250}.{number % 250 + 1}"
        await self._tell(pod, {"phase": "Pending", "podIP": address, "podIPs": [{"ip": address}]})
        variables = {one["name"]: await self._value(one, pod) for one in spec.get("env") or ()}
        container = self.pods[pod["metadata"]["name"]] = Container(spec, await self._mounts(pod, spec), variables)
        ended, begun = asyncio.create_task(container.run()), asyncio.create_task(container.started.wait())
        try:
            await asyncio.wait((ended, begun), return_when=asyncio.FIRST_COMPLETED)
            started = _time(container.started_at)
            running = {"running": {"startedAt": started}}
            ready = [_condition(kind) for kind in ("Initialized", "ContainersReady", "Ready")]
            await self._tell(pod, {"phase": "Running", "startTime": started, "conditions": ready, **_state(spec, running)})
            await ended
        except asyncio.CancelledError:
            container.kill()
            raise
        finally:
            begun.cancel()
        over = {
            "exitCode": container.exit_code,
            "reason": "Error" if container.exit_code else "Completed",
            "message": container.last_words,
            "startedAt": started,
            "finishedAt": _time(container.ended_at),
        }
        await self._tell(pod, {"phase": "Failed" if container.exit_code else "Succeeded", **_state(spec, {"terminated": over})})

    async def _end(self, uid: str, pod: dict[str, Any]) -> None:
        """One step towards the end of a pod that is being deleted."""
        name, task = pod["metadata"]["name"], self._known[uid]
        if not task.done():
            container = self.pods.get(name)
            if container is None:
                # Nothing was started yet.
                task.cancel()
                await asyncio.wait((task,))
                self._known[uid] = asyncio.create_task(self._tell(pod, {"phase": "Failed"}))
            elif uid not in self._told_to_end:
                self._told_to_end[uid] = time.monotonic()
                container.terminate()
            elif time.monotonic() - self._told_to_end[uid] > pod["metadata"]["deletionGracePeriodSeconds"]:
                container.kill()
            return
        with contextlib.suppress(KeyError):
            await self._api.delete(_path(pod), gracePeriodSeconds=0, preconditions={"uid": uid})

    async def _tell(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        with contextlib.suppress(KeyError):
            change = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
            await self._api.patch(f"{_path(pod)}/status", change, strategic=True)

    async def _value(self, variable: dict[str, Any], pod: dict[str, Any]) -> str:
        if "valueFrom" in variable:
            return _field(pod, variable["valueFrom"]["fieldRef"]["fieldPath"])
        value, subdomain = variable.get("value", ""), pod["spec"].get("subdomain")
        if subdomain and value.endswith(f".{subdomain}"):
            await self._resolved(pod["metadata"]["namespace"], subdomain, value.removesuffix(f".{subdomain}"))
            return "127.0.0.1"
        return str(value)

    async def _resolved(self, namespace: str, service: str, host: str) -> None:
        """Returns once the endpoints of a headless Service hold a pod of that name."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        while True:
            slices = await self._api.items(path, labelSelector=f"kubernetes.io/service-name={service}")
            if any(one.get("hostname") == host for found in slices for one in found["endpoints"] or ()):
                return
            await asyncio.sleep(_LOOK_S)

    async def _mounts(self, pod: dict[str, Any], spec: dict[str, Any]) -> dict[str, Path]:
        """Folders of this machine by the paths at which the container sees them."""
        volumes, found = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}, {}
        for mount in spec.get("volumeMounts") or ():
            volume, own = volumes[mount["name"]], self._folder / pod["metadata"]["name"] / mount["name"]
            if "persistentVolumeClaim" in volume:
                own = await self._claimed(pod["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"])
                assert str(own) == mount["mountPath"], "paths in files cannot be changed: mount the volume where it is"
            else:
                own.mkdir(parents=True)
            for item in volume.get("downwardAPI", {}).get("items", ()):
                (own / item["path"]).write_text(_field(pod, item["fieldRef"]["fieldPath"]))
            found[mount["mountPath"]] = own
        return found

    async def _claimed(self, namespace: str, claim: str) -> Path:
        bound = await self._api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
        volume = await self._api.get(f"/api/v1/persistentvolumes/{bound['spec']['volumeName']}")
        return Path(volume["spec"]["hostPath"]["path"])

    async def _serve_log(self, request: web.Request) -> web.StreamResponse:
        container = self.pods.get(request.match_info["pod"])
        if container is None:
            raise web.HTTPNotFound(text="it runs nothing of that name")
        since = datetime.fromisoformat(request.query["sinceTime"]) if "sinceTime" in request.query else datetime.min.replace(tzinfo=UTC)
        response = web.StreamResponse()
        response.content_type = "text/plain"
        await response.prepare(request)
        async for when, line in _follow(container):
            if when >= since:
                await response.write(f"{when:%Y-%m-%dT%H:%M:%S.%f}000Z {line}\n".encode())
        return response


async def _follow(container: Container) -> AsyncIterator[tuple[datetime, str]]:
    sent = 0
    while True:
        ended = container.exit_code is not None
        new = container.lines[sent:]
        sent += len(new)
        for line in new:
            yield line
        if ended:
            return
        await asyncio.sleep(0.05)


def _path(pod: dict[str, Any]) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _field(pod: dict[str, Any], path: str) -> str:
    found = re.fullmatch(r"metadata\.(annotations|labels)\['(.*)'\]", path)
    assert found is not None, f"this kubelet does not know {path}"
    return str(pod["metadata"][found[1]][found[2]])


def _state(spec: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    status = {"name": spec["name"], "image": spec["image"], "imageID": "", "restartCount": 0, "ready": "running" in state, "state": state}
    return {"containerStatuses": [status]}


def _condition(kind: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": "Simulated", "lastTransitionTime": _time(datetime.now(UTC))}


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
