"""What is made on Kubernetes for a job, and by which settings."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError
from trainer_place import ID, INPUTS, JOB, THE_ORDER, VOLUMES, settings_of

from services.common.errors import FailedPrecondition
from services.trainer.domain import (
    Order,
)
from services.trainer.kubernetes_launcher import KubernetesLauncher
from services.trainer.kubernetes_manifest import job_manifest, service_manifest
from services.trainer.records import ORDER
from services.trainer.settings import Settings


def test_a_job_for_one_process() -> None:
    job = job_manifest(THE_ORDER, settings_of())
    assert job["metadata"]["name"] == JOB
    assert job["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "tunetrial-trainer", "tunetrial.dev/job": ID}
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"], spec["completionMode"]) == (1, 1, 3, "NonIndexed")
    assert "suspend" not in spec
    assert "activeDeadlineSeconds" not in spec
    ignore, ended, fail = spec["podFailurePolicy"]["rules"]
    assert (ignore["action"], ignore["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget", "status": "True"}])
    assert (ended["action"], ended["onExitCodes"]["values"]) == ("Ignore", [4, 143])
    assert (fail["action"], fail["onExitCodes"]) == ("FailJob", {"containerName": "trainer", "operator": "In", "values": [42]})
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["automountServiceAccountToken"]) == ("Never", False)
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "services.trainer.pod", "/order/order.json"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"] == {"requests": {}, "limits": {}}
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["PYTHONHASHSEED"] == "0"
    assert not {"PYTHONPATH", "CUDA_VISIBLE_DEVICES"} & environment.keys()
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert mounts.keys() == {"/order", "/tmp", "/data", "/models"}  # noqa: S108
    assert mounts["/models"]["readOnly"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes[mounts["/data"]["name"]]["persistentVolumeClaim"] == {"claimName": "tunetrial"}
    # The file that the pod reads is an annotation of its own, and says all.
    (item,) = volumes["order"]["downwardAPI"]["items"]
    annotation = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
    assert ORDER.validate_json(spec["template"]["metadata"]["annotations"][annotation]) == THE_ORDER


def test_a_job_with_all_that_can_be_set() -> None:
    given = settings_of(
        gpus=2, requests={"cpu": "4"}, limits={"memory": "8Gi"}, node_selector={"pool": "a100"}, queue="trials", ttl_s=60,
        tolerations=[{"key": "gpu", "operator": "Exists"}], priority_class="low", active_deadline_s=3600, backoff_limit=1,
        service_account="pods", image_pull_secrets=["registry"], environment={"HF_HOME": "/data/hf"}, environment_secrets=["hub"],
        run_as_user=1000, fs_group=1000, labels={"team": "rag"}, annotations={"note": "x"},
    )  # fmt: skip
    job = job_manifest(THE_ORDER, given)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["suspend"], spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"], spec["backoffLimit"]) == (True, 3600, 60, 1)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "trials"
    assert "kueue.x-k8s.io/queue-name" not in spec["template"]["metadata"]["labels"]
    assert spec["template"]["metadata"]["labels"]["team"] == "rag"
    assert job["metadata"]["annotations"]["note"] == "x"
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "nvidia.com/gpu": "2"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
    }
    # A process for each GPU.
    assert pod["containers"][0]["command"][:7] == [
        *("torchrun", "--nnodes", "$(NNODES)", "--node-rank", "$(NODE_RANK)", "--nproc-per-node", "2"),
    ]
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert (pod["priorityClassName"], pod["serviceAccountName"], pod["imagePullSecrets"]) == ("low", "pods", [{"name": "registry"}])
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "hub"}}]
    environment = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert environment["HF_HOME"] == "/data/hf"
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (1000, 1000)


def test_a_job_on_several_nodes_finds_itself_by_name() -> None:
    job = job_manifest(THE_ORDER, settings_of(nodes=3, processes_per_node=2))
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == ("Indexed", 3, 3, 9)
    command = pod["containers"][0]["command"]
    assert command == [
        *("torchrun", "--nnodes", "$(NNODES)", "--node-rank", "$(NODE_RANK)", "--nproc-per-node", "2"),
        *("--master-addr", "$(MASTER_ADDR)", "--master-port", "$(MASTER_PORT)"),
        *("-m", "services.trainer.pod", "/order/order.json"),
    ]
    environment = {one["name"]: one for one in pod["containers"][0]["env"]}
    assert environment["NNODES"]["value"] == "3"
    assert environment["MASTER_ADDR"]["value"] == f"{JOB}-0.{JOB}"
    assert "job-completion-index" in environment["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert pod["subdomain"] == JOB
    service = service_manifest(job | {"metadata": {**job["metadata"], "uid": "u"}})
    assert (service["metadata"]["name"], service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == (JOB, "None", True)
    assert service["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    alone = job_manifest(THE_ORDER, settings_of(processes_per_node=2))["spec"]
    assert (alone["completionMode"], alone["template"]["spec"]["containers"][0]["command"][0]) == ("NonIndexed", "torchrun")


@pytest.mark.parametrize(
    ("order", "what"),
    [
        (replace(THE_ORDER, adapters_dir="/srv/adapters"), "the folder of adapters, /srv/adapters"),
        (replace(THE_ORDER, checkpoints_dir="/models/checkpoints"), "the folder of checkpoints, /models/checkpoints"),
        (replace(THE_ORDER, inputs=replace(INPUTS, dataset_path="/home/me/d.jsonl")), "the training data, /home/me/d.jsonl"),
        (replace(THE_ORDER, inputs=replace(INPUTS, base_path="/modelsx/base")), "the base, /modelsx/base"),
    ],
)
def test_what_pods_cannot_see_is_said_before_anything_is_made(order: Order, what: str) -> None:
    with pytest.raises(FailedPrecondition, match=what) as failed:
        job_manifest(order, settings_of())
    assert failed.value.reason == "PATH_NOT_ON_VOLUME"


def test_settings_are_read_from_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().kubernetes is None
    monkeypatch.setenv("TUNETRIAL_KUBERNETES", json.dumps({"image": "i", "volumes": VOLUMES, "gpus": 1}))
    found = Settings().kubernetes
    assert found is not None
    assert found.has_gpus
    assert KubernetesLauncher(found, 2.0).has_cuda
    assert not KubernetesLauncher(settings_of(), 2.0).has_cuda
    assert KubernetesLauncher(settings_of(nodes=3, processes_per_node=2), 2.0).processes == 6
    assert KubernetesLauncher(settings_of(limits={"nvidia.com/mig-1g.5gb": "1"}), 2.0).has_cuda
    for wrong in (
        {"image": ""},
        {"nodes": 0},
        {"gpu": 1},
        {"gpus": 2, "processes_per_node": 1},
        {"volumes": []},
        {"volumes": [{"mount_path": "/data"}]},
    ):
        with pytest.raises(ValidationError):
            settings_of(**wrong)
