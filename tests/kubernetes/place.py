"""A namespace as docs/trainer.md describes it, on a control plane, with nodes, and trainers that run Jobs there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tunetrial.trainer.v1 import trainer_pb2
from tunetrial.trainer.v1.trainer_pb2 import TrainingJob, TrainingSpec

from services.trainer.domain import Event, Progress, Progressed
from services.trainer.pod import event_in
from tests.contract.trainer.test_trainer_service import Trainer, running
from tests.kubernetes.control_plane import Api, ControlPlane
from tests.kubernetes.kubelet import Kubelet
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows

NAMESPACE, CLAIM, ROLE = "trial", "data", "tunetrial-trainer"
POOL = {"pool": "gpu"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
SPOT = {"key": "spot.example/reclaimed", "effect": "NoExecute"}
"""What a cloud puts on a node that it is about to take away."""
JOBS, PODS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", f"/api/v1/namespaces/{NAMESPACE}/pods"
OTHERS = "/api/v1/namespaces/default/pods"
SERVICES, QUOTAS = (f"/api/v1/namespaces/{NAMESPACE}/{kind}" for kind in ("services", "resourcequotas"))
STEPS = 400
"""Of the course: some seconds, in which things happen."""
_RBAC = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
_DOCS = Path(__file__).parents[2] / "docs" / "trainer.md"
_WAIT_S = 240.0
"""Long enough for whatever a busy machine does; what takes longer does not happen."""


@dataclass(frozen=True)
class Told:
    """What was heard of a pod."""

    node: str
    exit_code: int | None
    events: list[Event]

    @property
    def steps(self) -> list[Progress]:
        """How far it said it was."""
        return [event.progress for event in self.events if isinstance(event, Progressed)]


@dataclass
class Place:
    """A control plane with one namespace, one volume and any nodes."""

    plane: ControlPlane
    folder: Path
    """The volume; trainers and pods see it here."""
    nodes: dict[str, Kubelet] = field(default_factory=dict)
    """Those that are there."""
    gone_nodes: list[Kubelet] = field(default_factory=list)

    @property
    def api(self) -> Api:
        """As who may do everything."""
        return self.plane.admin

    async def add_node(self, name: str, gpus: int = 1, labels: dict[str, str] | None = None) -> Kubelet:
        """A node that takes pods from now on; one with GPUs is tainted, and in the pool unless it says otherwise."""
        kubelet = self.nodes[name] = Kubelet(self.api, name, self.folder / "nodes", self.plane.certificate)
        given = (labels if labels is not None else POOL) if gpus else {}
        await kubelet.start(gpus=gpus, labels=given, taints=[TAINT] if gpus else [])
        return kubelet

    async def taint(self, name: str, *taints: dict[str, str]) -> None:
        """Gives a node these taints beside that of its GPUs, and takes others away."""
        await self.api.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": [TAINT, *taints]}})

    async def remove_node(self, name: str) -> None:
        """As when a cloud takes a machine away: at once, and then its name."""
        self.gone_nodes.append(self.nodes.pop(name))
        await self.gone_nodes[-1].kill()
        await self.api.delete(f"/api/v1/nodes/{name}")

    async def job(self, job: TrainingJob) -> Any:
        """Its Job."""
        return await self.api.get(f"{JOBS}/tunetrial-{job.id}")

    async def pods(self, job: TrainingJob) -> list[Any]:
        """Its pods that are there now, oldest first."""
        found = await self.api.items(PODS, labelSelector=f"tunetrial.dev/job={job.id}")
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    async def gone(self, job: TrainingJob) -> bool:
        """Whether nothing is left of it."""
        try:
            await self.job(job)
        except KeyError:
            return not await self.pods(job) and not await self.api.items(SERVICES, labelSelector=f"tunetrial.dev/job={job.id}")
        return False

    def told(self, job: TrainingJob) -> list[Told]:
        """What each pod of a job wrote, in the order in which they were started."""
        kubelets = (*self.nodes.values(), *self.gone_nodes)
        found = [(one, kubelet) for kubelet in kubelets for name, one in kubelet.pods.items() if job.id in name]
        return [
            Told(kubelet.name, one.exit_code, [event for _, line in one.lines if (event := event_in(line)) is not None])
            for one, kubelet in sorted(found, key=lambda pair: pair[0].started_at)
        ]

    @contextlib.asynccontextmanager
    async def trainer(self, name: str, **given: Any) -> AsyncIterator[Trainer]:
        """A trainer's process, as its service account. `given` goes into TUNETRIAL_KUBERNETES."""
        root = self.folder / name
        if not root.exists():
            make_base(root / "base")
            write_rows(root / "train.jsonl", questions(12))
        kubeconfig = self.plane.kubeconfig(await self.plane.token(NAMESPACE, "trainer"), "trainer")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(kubeconfig))
            settings = json.dumps(self.settings(**given))
            async with running(root, KUBERNETES=settings, CHECKPOINT_S="0.5", SLOTS="8") as trainer:
                yield trainer

    def settings(self, **given: Any) -> dict[str, Any]:
        """TUNETRIAL_KUBERNETES: a GPU from the pool, whatever its taint; no pod may fail by its own fault."""
        return {
            "namespace": NAMESPACE,
            "image": "registry.example/tunetrial-trainer:1",
            "volumes": [{"mount_path": str(self.folder), "claim": CLAIM}],
            "gpus": 1,
            "node_selector": POOL,
            "tolerations": [{"key": TAINT["key"], "operator": "Exists", "effect": TAINT["effect"]}],
            "requests": {"cpu": "1", "memory": "1Gi"},
            "backoff_limit": 0,
        } | given

    async def occupy(self, name: str, priority_class: str = "") -> str:
        """Starts a pod of somebody else on a GPU of the pool; the node that it got."""
        await self.api.create(OTHERS, gpu_pod(name, priority_class))

        async def runs() -> bool:
            return bool((await self.api.get(f"{OTHERS}/{name}"))["status"]["phase"] == "Running")

        await until(runs)
        return str((await self.api.get(f"{OTHERS}/{name}"))["spec"]["nodeName"])

    async def allow(self, *rules: dict[str, Any]) -> None:
        """Lets the trainer's account do this and nothing else."""
        await self.api.patch(f"{_RBAC}/roles/{ROLE}", {"rules": list(rules)})


def documented_role() -> dict[str, Any]:
    """The Role that docs/trainer.md tells to make."""
    text = _DOCS.read_text()
    blocks = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    (found,) = [yaml.safe_load(block) for block in blocks if "kind: Role\n" in block]
    assert found["metadata"]["name"] == ROLE
    return dict(found)


def waited_for(trainer: Trainer, job: TrainingJob) -> list[str]:
    """What the trainer's log says a job waits for."""
    entries = [json.loads(line) for line in (trainer.root / "service.txt").read_text().splitlines() if line.startswith("{")]
    return [entry["why"] for entry in entries if (entry["event"], entry.get("job")) == ("a job waits", f"tunetrial-{job.id}")]


def gpu_pod(name: str, priority_class: str = "") -> dict[str, Any]:
    """A pod of somebody else that takes a GPU of the pool and does nothing."""
    gpu = {"requests": {TAINT["key"]: "1"}, "limits": {TAINT["key"]: "1"}}
    return {
        "metadata": {"name": name},
        "spec": {
            "priorityClassName": priority_class,
            "nodeSelector": POOL,
            "tolerations": [{"key": TAINT["key"], "operator": "Exists"}],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "it", "image": "i", "command": ["sleep", "86400"], "resources": gpu}],
        },
    }


@dataclass(frozen=True)
class Undisturbed:
    """How the course went when nothing happened, and what came of it."""

    seen: list[TrainingJob]
    adapter: trainer_pb2.Adapter


def course(trainer: Trainer, name: str) -> TrainingSpec:
    """A training that takes some seconds. Whatever becomes of it, its weights must be those of every other one of the same course."""
    return trainer.spec(name, max_steps=STEPS)


async def cancel(trainer: Trainer, job: TrainingJob) -> TrainingJob:
    """The job once the call has returned."""
    return (await trainer.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=job.id), timeout=60)).job


async def until(fits: Callable[[], Awaitable[object]]) -> None:
    """Returns once it does."""
    async with asyncio.timeout(_WAIT_S):
        while not await fits():  # noqa: ASYNC110  what the cluster holds tells nobody
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def open_place(folder: Path) -> AsyncIterator[Place]:
    """A control plane with the namespace and no node."""
    for name in ("plane", "volume"):
        (folder / name).mkdir()
    async with ControlPlane(folder / "plane") as plane:
        place = Place(plane, folder / "volume")
        await _furnish(place)
        try:
            yield place
        finally:
            for kubelet in place.nodes.values():
                await kubelet.kill()


async def _furnish(place: Place) -> None:
    api = place.api
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    await api.create(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "trainer"}})
    await api.create(f"{_RBAC}/roles", documented_role())
    binding = {
        "metadata": {"name": ROLE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ROLE},
        "subjects": [{"kind": "ServiceAccount", "name": "trainer", "namespace": NAMESPACE}],
    }
    await api.create(f"{_RBAC}/rolebindings", binding)
    size, shared = {"storage": "1Gi"}, {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {"capacity": size, "hostPath": {"path": str(place.folder)}, **shared}
    await api.create("/api/v1/persistentvolumes", {"metadata": {"name": CLAIM}, "spec": volume})
    claim = {"resources": {"requests": size}, "volumeName": CLAIM, **shared}
    claims = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
    await api.create(claims, {"metadata": {"name": CLAIM}, "spec": claim})

    async def bound() -> bool:
        return bool((await api.get(f"{claims}/{CLAIM}")).get("status", {}).get("phase") == "Bound")

    await until(bound)
    # Pods need the account that every namespace gets.
    for namespace in (NAMESPACE, "default"):
        await until(lambda namespace=namespace: _exists(api, f"/api/v1/namespaces/{namespace}/serviceaccounts/default"))


async def _exists(api: Api, path: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(await api.get(path))
    return False
