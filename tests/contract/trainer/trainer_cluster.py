"""A server that behaves to the trainer as the Kubernetes API with the controller of Jobs does. What pods do, the test says.

As the real one it refuses what RBAC does not allow, makes no two Jobs of one name, keeps a Job that is deleted in the foreground until its
pods are gone, and gives logs by the second.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from services.trainer.domain import Event
from services.trainer.pod import _MARK
from services.trainer.records import EVENT
from tests.contract.generator.kubernetes_server import running

NAMESPACE = "trial"
INDEX = "batch.kubernetes.io/job-completion-index"
_START = datetime(2026, 1, 1, tzinfo=UTC)


class Pod:
    """A pod and what its process writes."""

    def __init__(self, job: dict[str, Any], name: str, number: int, index: int | None) -> None:
        self.lines: list[tuple[datetime, str]] = []
        self.changed = asyncio.Condition()
        self.cut_after: int | None = None
        """Bytes of its log after which the next connection breaks."""
        self.log_faults = 0
        """So many times the log cannot be had."""
        self.deleted = asyncio.Event()
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
        annotations = {**job["spec"]["template"]["metadata"]["annotations"], **({} if index is None else {INDEX: str(index)})}
        self.object: dict[str, Any] = {
            "metadata": {
                "name": name,
                "uid": f"uid-{name}",
                "labels": job["spec"]["template"]["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": [owner],
                "creationTimestamp": (_START + timedelta(seconds=number)).isoformat(),
            },
            "spec": job["spec"]["template"]["spec"],
            "status": {"phase": "Pending"},
        }

    @property
    def ended(self) -> bool:
        return self.object["status"]["phase"] in ("Succeeded", "Failed") or self.deleted.is_set()

    def _state(self, phase: str, state: dict[str, Any]) -> None:
        container = {"name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        self.object["status"] = {"phase": phase, "containerStatuses": [container]}

    def wait(self, reason: str, message: str = "") -> None:
        """Its container cannot be started."""
        self._state("Pending", {"waiting": {"reason": reason, "message": message}})

    def unschedulable(self, message: str) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self.object["status"] = {"phase": "Pending", "conditions": [condition]}

    def start(self) -> Pod:
        self._state("Running", {"running": {"startedAt": _START.isoformat()}})
        return self

    async def say(self, *lines: str | Event) -> None:
        """Lines 0.4 s apart."""
        async with self.changed:
            for line in lines:
                text = line if isinstance(line, str) else f"{_MARK}{EVENT.dump_json(line).decode()}"
                self.lines.append((_START + timedelta(seconds=0.4 * len(self.lines)), text))
            self.changed.notify_all()

    async def end(self, code: int, message: str = "", finished_at: str = "2026-01-01T00:00:00Z") -> None:
        state = {
            "terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "message": message, "finishedAt": finished_at}
        }
        self._state("Failed" if code else "Succeeded", state)
        async with self.changed:
            self.changed.notify_all()

    async def delete(self) -> None:
        self.deleted.set()
        async with self.changed:
            self.changed.notify_all()


class Cluster:
    """One namespace."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pod] = {}
        self.warnings: dict[str, str] = {}
        """By the uid of what they are about."""
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.denied: set[str] = set()
        """Such as `create jobs`."""
        self.away = 0
        """So many of the next calls fail."""
        self.lost_answers = 0
        """So many of the next things made are made without an answer."""
        self.deaf = False
        """Pods do not end when they are deleted."""
        self._numbers = itertools.count()

    def routes(self) -> web.Application:
        app = web.Application(middlewares=[self._watched])
        jobs, core = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", f"/api/v1/namespaces/{NAMESPACE}"
        app.add_routes(
            [
                web.post(jobs, self._create_job),
                web.get(f"{jobs}/{{name}}", self._get_job),
                web.delete(f"{jobs}/{{name}}", self._delete_job),
                web.post(f"{core}/services", self._create_service),
                web.get(f"{core}/pods", self._list_pods),
                web.delete(f"{core}/pods/{{name}}", self._delete_pod),
                web.get(f"{core}/pods/{{name}}/log", self._read_log),
                web.get(f"{core}/events", self._list_events),
            ]
        )
        return app

    async def close(self) -> None:
        for pod in self.pods.values():
            await pod.delete()

    async def job(self, name: str) -> dict[str, Any]:
        while name not in self.jobs:  # noqa: ASYNC110  it is made by a request
            await asyncio.sleep(0.01)
        return self.jobs[name]

    async def pod(self, job: str, *, index: int | None = None) -> Pod:
        """Makes a pod of a Job, as its controller does."""
        found, number = await self.job(job), next(self._numbers)
        pod = self.pods[f"{job}-{number}"] = Pod(found, f"{job}-{number}", number, index)
        return pod

    def finish(self, job: str, kind: str, reason: str = "", message: str = "") -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.jobs[job]["status"] = {"conditions": [condition]}

    def count(self, method: str, path: str) -> int:
        return sum(asked == method and path in where for asked, where in self.asked)

    @web.middleware
    async def _watched(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append((request.method, request.path))
        if self.away:
            self.away -= 1
            return _status(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        kind = request.path.split(f"/{NAMESPACE}/")[1].split("/")[0]
        verb = {"POST": "create", "DELETE": "delete"}.get(request.method, "get" if "name" in request.match_info else "list")
        if request.path.endswith("/log"):
            kind = "pods/log"
        if f"{verb} {kind}" in self.denied:
            said = f'{kind} is forbidden: User "trainer" cannot {verb} resource "{kind}" in API group "" in the namespace "{NAMESPACE}"'
            return _status(403, "Forbidden", said)
        response: web.StreamResponse = await handler(request)
        if request.method == "POST" and self.lost_answers:
            self.lost_answers -= 1
            return _status(504, "Timeout", "request did not complete within the allotted timeout")
        return response

    async def _create_job(self, request: web.Request) -> web.Response:
        job = await request.json()
        name = job["metadata"]["name"]
        if name in self.jobs:
            return _status(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        job["metadata"] |= {"uid": f"uid-{next(self._numbers)}", "namespace": NAMESPACE}
        self.jobs[name] = job | {"status": {}}
        return web.json_response(self.jobs[name], status=201)

    async def _get_job(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(self.jobs[name]) if name in self.jobs else _status(404, "NotFound", f'jobs.batch "{name}" not found')

    async def _delete_job(self, request: web.Request) -> web.Response:
        name, options = request.match_info["name"], await request.json()
        self.bodies.append(options)
        if name not in self.jobs:
            return _status(404, "NotFound", f'jobs.batch "{name}" not found')
        if options["preconditions"]["uid"] != self.jobs[name]["metadata"]["uid"]:
            return _status(409, "Conflict", "the UID in the precondition does not match")
        self.jobs[name]["metadata"]["deletionTimestamp"] = _START.isoformat()
        for pod in self._pods_of(name):
            pod.object["metadata"]["deletionTimestamp"] = _START.isoformat()
        self._collect(name)
        return web.json_response(self.jobs.get(name, {}))

    async def _delete_pod(self, request: web.Request) -> web.Response:
        pod = self.pods[request.match_info["name"]]
        self.bodies.append(await request.json())
        if not self.deaf:
            await pod.delete()
            del self.pods[request.match_info["name"]]
            for name in list(self.jobs):
                self._collect(name)
        return web.json_response(pod.object)

    def _pods_of(self, job: str) -> list[Pod]:
        uid = self.jobs[job]["metadata"]["uid"]
        return [pod for pod in self.pods.values() if pod.object["metadata"]["ownerReferences"][0]["uid"] == uid]

    def _collect(self, job: str) -> None:
        if "deletionTimestamp" in self.jobs[job]["metadata"] and not self._pods_of(job):
            del self.jobs[job]

    async def _create_service(self, request: web.Request) -> web.Response:
        service = await request.json()
        if service["metadata"]["name"] in self.services:
            return _status(409, "AlreadyExists", "services already exists")
        self.services[service["metadata"]["name"]] = service
        return web.json_response(service, status=201)

    async def _list_pods(self, request: web.Request) -> web.Response:
        wanted = dict(one.split("=") for one in request.query["labelSelector"].split(","))
        found = [pod.object for pod in self.pods.values() if wanted.items() <= pod.object["metadata"]["labels"].items()]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})

    async def _list_events(self, request: web.Request) -> web.Response:
        uid = request.query["fieldSelector"].split("involvedObject.uid=")[1].split(",")[0]
        said = [{"type": "Warning", "reason": "FailedCreate", "message": self.warnings[uid]}] if uid in self.warnings else []
        return web.json_response({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": said})

    async def _read_log(self, request: web.Request) -> web.StreamResponse:
        assert request.query["container"] == "trainer"
        assert request.query["timestamps"] == request.query["follow"] == "true"
        pod = self.pods.get(request.match_info["name"])
        if pod is None:
            return _status(404, "NotFound", "pods not found")
        if pod.log_faults:
            pod.log_faults -= 1
            return _status(500, "InternalError", "dial tcp 10.0.0.1:10250: i/o timeout")
        since = datetime.fromisoformat(request.query["sinceTime"]) if "sinceTime" in request.query else _START
        response = web.StreamResponse()
        await response.prepare(request)
        sent = written = 0
        while True:
            data = b"".join(_written(time, line) for time, line in pod.lines[sent:] if time >= since)
            sent = len(pod.lines)
            if pod.cut_after is not None and written + len(data) > pod.cut_after:
                await response.write(data[: max(0, pod.cut_after - written)])
                pod.cut_after = None
                assert request.transport is not None
                request.transport.close()
                return response
            written += len(data)
            if data:
                await response.write(data)
            if pod.ended:
                return response
            async with pod.changed:
                if sent == len(pod.lines) and not pod.ended:
                    await pod.changed.wait()


@asynccontextmanager
async def cluster_in(folder: Path) -> AsyncIterator[tuple[Cluster, Path]]:
    """A cluster and the kubeconfig file that names it."""
    cluster = Cluster()
    async with running(cluster, folder) as kubeconfig:  # type: ignore[arg-type]  # it asks for routes and close only
        yield cluster, kubeconfig


def _written(time: datetime, line: str) -> bytes:
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}789Z {line}\n".encode()


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}
    return web.Response(text=json.dumps(body), status=code, content_type="application/json")
