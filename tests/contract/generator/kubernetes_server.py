"""A server that behaves to the rollout as the Kubernetes API with the controllers of StatefulSets and Deployments does, for one workload.

Its pods are whatever the test starts. Of a StatefulSet, a pod that does not get ready is not replaced until it is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

Pods = Callable[[dict[str, str]], Awaitable[bool]]
"""Starts the pods with a start list (paths by names); whether they get ready."""


class Cluster:
    """One workload `small` in the namespace `models`."""

    def __init__(self, kind: str, pods: Pods, adapters: str = "ada.1=/a,bob/2=/b") -> None:
        self.kind, self.pods = kind, pods
        self.denied = False
        self.faults: list[bool] = []
        """Which of the next calls fail."""
        self.conflicts = 0
        """So many patches find the workload changed by somebody else."""
        self.asked: list[tuple[str, str]] = []
        self.stuck = ""
        self._released = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None
        containers = [
            {"name": "proxy", "image": "proxy"},
            {"name": "tgi", "image": "tgi", "env": [{"name": "PORT", "value": "80"}, {"name": "LORA_ADAPTERS", "value": adapters}]},
        ]
        template = {"metadata": {"labels": {"app": "small"}}, "spec": {"containers": containers}}
        self.workload: dict[str, Any] = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": "small", "namespace": "models", "uid": "small-uid", "generation": 1, "resourceVersion": "1"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "small"}}, "template": template},
        }
        if kind == "StatefulSet":
            self.workload["spec"] |= {"serviceName": "small", "updateStrategy": {"type": "RollingUpdate"}}
        self._tell(ready=True)

    @property
    def environment(self) -> list[dict[str, Any]]:
        """Of the container that runs TGI."""
        found: list[dict[str, Any]] = self.workload["spec"]["template"]["spec"]["containers"][1]["env"]
        return found

    @property
    def start_list(self) -> str:
        """What LORA_ADAPTERS is."""
        return next((str(one["value"]) for one in self.environment if one["name"] == "LORA_ADAPTERS"), "unset")

    def routes(self) -> web.Application:
        """The part of the API that is asked."""
        app = web.Application(middlewares=[self._watched])
        path = f"/apis/apps/v1/namespaces/models/{self.kind.lower()}s/small"
        app.add_routes([web.get(path, self._read), web.patch(path, self._patch)])
        pods = "/api/v1/namespaces/models/pods"
        app.add_routes([web.get(pods, self._pods), web.delete(f"{pods}/{{name}}", self._delete)])
        return app

    @web.middleware
    async def _watched(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append((request.method, request.path))
        if self.denied:
            return _status(403, "Forbidden", 'User "generator" cannot get resource')
        if self.faults and self.faults.pop(0):
            return _status(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        response: web.StreamResponse = await handler(request)
        return response

    async def _read(self, _request: web.Request) -> web.Response:
        return web.json_response(self.workload)

    async def _patch(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/strategic-merge-patch+json"
        body = await request.json()
        metadata = self.workload["metadata"]
        if self.conflicts or body["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            self.conflicts = max(0, self.conflicts - 1)
            return _status(409, "Conflict", "the object has been modified")
        (change,) = body["spec"]["template"]["spec"]["containers"]
        assert change["name"] == "tgi"
        for variable in change["env"]:
            kept = [one for one in self.environment if one["name"] != variable["name"]]
            self.environment[:] = kept if variable.get("$patch") == "delete" else [*kept, variable]
        metadata["generation"] += 1
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        before = self._rolling
        self._rolling = asyncio.create_task(self._roll(before))
        return web.json_response(self.workload)

    async def _roll(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        self._tell(ready=False)
        if self.stuck and self.kind == "StatefulSet":
            await self._released.wait()
        entries = [] if self.start_list == "unset" else self.start_list.split(",")
        # TGI does not start with an empty list.
        ready = "" not in entries and await self.pods({entry.partition("=")[0]: entry.partition("=")[2] for entry in entries})
        self.stuck = "" if ready else "small-1"
        self._released.clear()
        self._tell(ready=ready)

    def _tell(self, *, ready: bool) -> None:
        generation = self.workload["metadata"]["generation"]
        done = 2 if ready else 1
        status = {"observedGeneration": generation, "replicas": 2, "updatedReplicas": done, "readyReplicas": done}
        if self.kind == "StatefulSet":
            status |= {"updateRevision": f"small-{generation}", "currentRevision": f"small-{generation if ready else generation - 1}"}
        self.workload["status"] = status

    async def _pods(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "app=small"
        other = self._pod("other-0") | {"metadata": {"name": "other-0", "namespace": "models"}}
        pods = [self._pod("small-0"), self._pod("small-1"), other]
        return web.json_response({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods})

    def _pod(self, name: str) -> dict[str, Any]:
        container: dict[str, Any] = {"name": "tgi", "image": "tgi", "imageID": "", "ready": name != self.stuck, "restartCount": 0}
        if name == self.stuck:
            container["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
        conditions = [{"type": "Ready", "status": "False" if name == self.stuck else "True"}]
        status = {"conditions": conditions, "containerStatuses": [container]}
        owner = {"apiVersion": "apps/v1", "kind": self.kind, "name": "small", "uid": "small-uid"}
        return {
            "metadata": {"name": name, "namespace": "models", "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "tgi"}]},
            "status": status,
        }

    async def _delete(self, request: web.Request) -> web.Response:
        assert request.match_info["name"] == self.stuck
        self._released.set()
        return web.json_response(self._pod(self.stuck))

    async def close(self) -> None:
        if self._rolling is not None:
            self._rolling.cancel()
            await asyncio.gather(self._rolling, return_exceptions=True)


@contextlib.asynccontextmanager
async def running(cluster: Cluster, folder: Path) -> AsyncIterator[Path]:
    """The server, as a kubeconfig file in `folder` names it."""
    runner = web.AppRunner(cluster.routes())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "generator", "user": {"token": "secret"}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "generator"}}],
            }
        ),
        encoding="utf-8",
    )
    try:
        yield kubeconfig
    finally:
        await cluster.close()
        await runner.cleanup()


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}
    return web.json_response(body, status=code)
