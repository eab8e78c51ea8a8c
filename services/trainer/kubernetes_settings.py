"""What an operator says of training on Kubernetes: TUNETRIAL_KUBERNETES, a JSON object. Contacts nothing."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

_Absolute = Annotated[str, StringConstraints(pattern=r"^/[^\s:]+$")]
_Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Volume(_Part):
    """A volume that the trainer and its pods see at the same path."""

    mount_path: _Absolute = Field(description="Where it is mounted: in the trainer and in its pods alike.")
    claim: str = Field("", description="Name of a PersistentVolumeClaim.")
    source: dict[str, Any] = Field(
        default_factory=dict, description='Any other volume as a pod names it: {"nfs": {...}}; instead of claim.'
    )
    sub_path: str = Field("", description="Folder inside the volume; empty for all of it.")
    read_only: bool = Field(False, description="Whether pods may only read it.")

    @model_validator(mode="after")
    def _one_source(self) -> Volume:
        if bool(self.claim) == bool(self.source):
            raise ValueError(f"volume {self.mount_path} needs claim or source, one of them")
        return self

    def holds(self, path: str) -> bool:
        """Whether `path` lies on it."""
        return PurePosixPath(path).is_relative_to(self.mount_path)


class KubernetesTraining(_Part):
    """Jobs as pods of a cluster; reached as a pod's service account, or by KUBECONFIG."""

    namespace: str = Field("", description="Where Jobs are made; unset: the trainer's own.")
    image: str = Field(min_length=1, description="Image of the pods: the trainer's own, best by digest.")
    image_pull_secrets: tuple[str, ...] = Field((), description="Names of secrets for the image's registry.")
    service_account: str = Field("", description="Of the pods, which get no token of it; unset: the namespace's default.")
    volumes: tuple[Volume, ...] = Field(min_length=1, description="One must hold TUNETRIAL_DATA_DIR; bases and data lie on these too.")

    nodes: int = Field(1, ge=1, description="Pods that train one job together; from 2 on under torchrun.")
    processes_per_node: int = Field(0, ge=0, description="Training processes in each pod, under torchrun from 2 on; 0: one a GPU.")
    master_port: int = Field(29500, ge=1024, le=65535, description="Port at which processes find each other.")
    gpus: int = Field(0, ge=0, description="GPUs of each pod.")
    gpu_resource: str = Field("nvidia.com/gpu", description="Name of the resource that GPUs are.")
    requests: dict[str, str] = Field(
        default_factory=dict, description='What each pod asks for beside GPUs: {"cpu": "4", "memory": "32Gi"}.'
    )
    limits: dict[str, str] = Field(default_factory=dict, description="What each pod may use at most, beside GPUs.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that nodes must have.")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="Taints of nodes that pods put up with, as a pod names them.")
    priority_class: str = Field("", description="PriorityClass of the pods; unset: the cluster's default.")
    queue: str = Field("", description="Kueue's LocalQueue: Jobs begin suspended and Kueue lets them in; unset: no Kueue.")

    backoff_limit: int = Field(3, ge=0, description="Pods that may die before the job fails. Preempted and evicted ones are not counted.")
    ttl_s: int = Field(86_400, ge=60, description="Seconds after which an ended Job and its log are removed.")
    active_deadline_s: int | None = Field(
        None, ge=1, description="Longest that a Job may take once it began, retries included; unset: any."
    )
    start_timeout_s: float = Field(
        600.0,
        gt=0,
        description="Longest that a pod may be unable to start, for its image say, before the job fails; room it awaits for ever.",
    )
    termination_grace_s: int = Field(60, ge=1, description="Seconds that a pod has to save a checkpoint when it is evicted.")

    environment: dict[_Variable, str] = Field(default_factory=dict, description="Variables of the pods; no secrets.")
    environment_secrets: tuple[str, ...] = Field((), description="Secrets whose entries become variables of the pods: HF_TOKEN say.")
    run_as_user: int | None = Field(None, ge=1, description="User of the pods; unset: the image's, which must be a number and not 0.")
    run_as_group: int | None = Field(None, ge=1, description="Group of the pods; unset: the image's.")
    fs_group: int | None = Field(None, ge=1, description="Group that owns volumes; unset: as they are.")
    labels: dict[str, str] = Field(default_factory=dict, description="Further labels of Jobs and pods.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Further annotations of Jobs and pods.")

    @model_validator(mode="after")
    def _one_gpu_a_process(self) -> KubernetesTraining:
        # One process with two of them would train on twice the batch.
        if self.gpus and self.per_node != self.gpus:
            raise ValueError(
                f"each process takes one GPU: {self.per_node} in a pod with {self.gpus} do not fit; leave processes_per_node out"
            )
        return self

    @property
    def per_node(self) -> int:
        """Training processes in each pod."""
        return self.processes_per_node or max(1, self.gpus)

    @property
    def processes(self) -> int:
        """How many share the batch of a job."""
        return self.nodes * self.per_node

    @property
    def torchrun(self) -> bool:
        """Whether one job is several processes."""
        return self.processes > 1

    @property
    def has_gpus(self) -> bool:
        """Whether pods get any."""
        return self.gpus > 0 or any(name.startswith("nvidia.com/") for name in self.limits)
