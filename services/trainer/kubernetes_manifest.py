"""A training job as Kubernetes objects: a Job, and for several nodes a headless Service by which they find each other. Contacts nothing.

The order travels as an annotation that the pod sees as a file. So one object is all there is to make, adopt and delete: no ConfigMap that
is there before its owner, or stays after it.
"""

from __future__ import annotations

from typing import Any

from services.common.errors import FailedPrecondition
from services.trainer.domain import Order
from services.trainer.job import INTERRUPTED, ORDER_FILE
from services.trainer.kubernetes_settings import KubernetesTraining
from services.trainer.local_launcher import job_environment
from services.trainer.pod import ENDED_CODE, FAILED_CODE
from services.trainer.records import ORDER

CONTAINER = "trainer"
MANAGED_BY = "app.kubernetes.io/managed-by"
JOB_LABEL = "tunetrial.dev/job"
INDEX = "batch.kubernetes.io/job-completion-index"
"""Annotation and label by which pods of an Indexed Job are told apart."""
_ORDER = "tunetrial.dev/order"
_QUEUE = "kueue.x-k8s.io/queue-name"
_ORDER_DIR = "/order"
# Of this machine only: where its code lies and which of its devices to use.
_LOCAL = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES")


def job_name(job_id: str) -> str:
    """The name of its Job, Service and pods: the same after a restart."""
    return f"tunetrial-{job_id}"


def labels_of(job_id: str) -> dict[str, str]:
    """By which its objects are known as ours."""
    return {MANAGED_BY: "tunetrial-trainer", JOB_LABEL: job_id}


def job_manifest(order: Order, settings: KubernetesTraining) -> dict[str, Any]:
    """The Job. Raises FailedPrecondition PATH_NOT_ON_VOLUME."""
    _check_paths(order, settings)
    nodes = settings.nodes
    spec: dict[str, Any] = {
        "completions": nodes,
        "parallelism": nodes,
        "completionMode": "Indexed" if nodes > 1 else "NonIndexed",
        # When one of several nodes dies the others die with it.
        "backoffLimit": settings.backoff_limit * nodes,
        "ttlSecondsAfterFinished": settings.ttl_s,
        "podFailurePolicy": {
            "rules": [
                # Preempted, drained, evicted: no fault of the job's. The next pod goes on from the checkpoint.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                # Told to end by whomever, say by hand.
                {"action": "Ignore", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [INTERRUPTED, ENDED_CODE]}},
                # It said why it cannot finish, and would again.
                {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [FAILED_CODE]}},
            ]
        },
        "template": {"metadata": _metadata(order, settings), "spec": _pod(order, settings)},
    }
    if settings.active_deadline_s is not None:
        spec["activeDeadlineSeconds"] = settings.active_deadline_s
    metadata: dict[str, Any] = {**_metadata(order, settings), "name": job_name(order.job_id)}
    if settings.queue:
        spec["suspend"] = True
        metadata["labels"] = {**metadata["labels"], _QUEUE: settings.queue}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def service_manifest(job: dict[str, Any]) -> dict[str, Any]:
    """The headless Service of a Job with several nodes; it goes with the Job."""
    metadata = job["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    ours = labels_of(metadata["labels"][JOB_LABEL])
    # Names must be found before anybody is ready: that is what they wait for.
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": ours}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": metadata["name"], "labels": ours, "ownerReferences": [owner]},
        "spec": spec,
    }


def _metadata(order: Order, settings: KubernetesTraining) -> dict[str, Any]:
    annotations = {**settings.annotations, _ORDER: ORDER.dump_json(order).decode()}
    return {"labels": {**settings.labels, **labels_of(order.job_id)}, "annotations": annotations}


def _pod(order: Order, settings: KubernetesTraining) -> dict[str, Any]:
    identity = {"runAsUser": settings.run_as_user, "runAsGroup": settings.run_as_group, "fsGroup": settings.fs_group}
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.termination_grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **{name: number for name, number in identity.items() if number is not None},
        },
        "containers": [_container(order, settings)],
        "volumes": _volumes(settings),
    }
    given = {
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "nodeSelector": settings.node_selector,
        "tolerations": list(settings.tolerations),
        "priorityClassName": settings.priority_class,
        "subdomain": job_name(order.job_id) if settings.nodes > 1 else "",
    }
    return pod | {name: value for name, value in given.items() if value}


def _container(order: Order, settings: KubernetesTraining) -> dict[str, Any]:
    gpus = {settings.gpu_resource: str(settings.gpus)} if settings.gpus else {}
    mounts: list[dict[str, Any]] = [{"name": "order", "mountPath": _ORDER_DIR, "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    for number, volume in enumerate(settings.volumes):
        mount = {"name": f"volume-{number}", "mountPath": volume.mount_path, "subPath": volume.sub_path, "readOnly": volume.read_only}
        mounts.append({name: value for name, value in mount.items() if value})
    if settings.torchrun:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108
    return {
        "name": CONTAINER,
        "image": settings.image,
        "command": _command(settings),
        "env": _environment(order, settings),
        "envFrom": [{"secretRef": {"name": name}} for name in settings.environment_secrets],
        "resources": {"requests": {**settings.requests, **gpus}, "limits": {**settings.limits, **gpus}},
        "volumeMounts": mounts,
        # Its last lines stay with the pod where the log itself is out of reach.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _command(settings: KubernetesTraining) -> list[str]:
    entry = ["-m", "services.trainer.pod", f"{_ORDER_DIR}/{ORDER_FILE}"]
    if not settings.torchrun:
        return ["python", *entry]
    return [
        "torchrun",
        *("--nnodes", "$(NNODES)", "--node-rank", "$(NODE_RANK)", "--nproc-per-node", str(settings.per_node)),
        *("--master-addr", "$(MASTER_ADDR)", "--master-port", "$(MASTER_PORT)"),
        *entry,
    ]


def _environment(order: Order, settings: KubernetesTraining) -> list[dict[str, Any]]:
    # The root is read-only; fetched bases belong on a volume by HF_HOME.
    variables = {"HOME": "/tmp", "HF_HOME": "/tmp/huggingface", **job_environment({}, order.threads)}  # noqa: S108
    variables = {name: value for name, value in variables.items() if name not in _LOCAL} | settings.environment
    found: list[dict[str, Any]] = []
    if settings.torchrun:
        name, several = job_name(order.job_id), settings.nodes > 1
        found = [
            {"name": "NNODES", "value": str(settings.nodes)},
            {"name": "MASTER_ADDR", "value": f"{name}-0.{name}" if several else "127.0.0.1"},
            {"name": "MASTER_PORT", "value": str(settings.master_port)},
            # What JOB_COMPLETION_INDEX is made of; that itself comes too late in the list to stand in the command.
            {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}}
            if several
            else {"name": "NODE_RANK", "value": "0"},
        ]
    return [*({"name": name, "value": value} for name, value in variables.items()), *found]


def _volumes(settings: KubernetesTraining) -> list[dict[str, Any]]:
    item = {"path": ORDER_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{_ORDER}']"}}
    volumes: list[dict[str, Any]] = [{"name": "order", "downwardAPI": {"items": [item]}}, {"name": "tmp", "emptyDir": {}}]
    for number, volume in enumerate(settings.volumes):
        source = volume.source or {"persistentVolumeClaim": {"claimName": volume.claim}}
        volumes.append({"name": f"volume-{number}", **source})
    if settings.torchrun:
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    return volumes


def _check_paths(order: Order, settings: KubernetesTraining) -> None:
    inputs = order.inputs
    written = {"the folder of adapters": order.adapters_dir, "the folder of checkpoints": order.checkpoints_dir}
    read = {"the base": inputs.base_path, "the training data": inputs.dataset_path, "the evaluation data": inputs.evaluation_path}
    for what, path in (written | read).items():
        volumes = [volume for volume in settings.volumes if path is None or volume.holds(path)]
        # The innermost one is what the pod sees there.
        if not volumes or (what in written and max(volumes, key=lambda volume: len(volume.mount_path)).read_only):
            may = (
                "on no volume of TUNETRIAL_KUBERNETES that pods may write to" if what in written else "on no volume of TUNETRIAL_KUBERNETES"
            )
            message = "{what}, {path}, lies {may}: pods cannot get at it; mount a volume there, in the trainer and by its settings"
            raise FailedPrecondition("PATH_NOT_ON_VOLUME", message, what=what, path=path, may=may)
