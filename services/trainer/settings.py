"""What the trainer takes from its environment, all as `TUNETRIAL_*`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.common.settings import ServerSettings
from services.trainer.kubernetes_settings import KubernetesTraining


class Settings(ServerSettings):
    """Settings of the trainer beside those of every server."""

    port: int = Field(7003, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path(".tunetrial/trainer"), description="Folder of job folders, adapters and, by default, the database.")
    database_url: str = Field("", description="SQLAlchemy URL with an async driver; empty means SQLite under data_dir.")
    models: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="Bases by name: JSON object, or `name=path` separated by ','; a path is a folder or a hub name. "
        "Bases that are not named here are folders under uri_roots or hub names.",
    )
    slots: int = Field(1, ge=1, description="Jobs that train at once; the others wait.")
    threads: int = Field(1, ge=1, description="CPU threads of each process.")
    processes: int = Field(1, ge=1, description="Processes of each job, a CUDA device each where there are any; they share its batch.")
    max_queued: int = Field(1000, ge=1, description="Jobs that may wait; more are refused with RESOURCE_EXHAUSTED.")
    warm_start: bool = Field(
        True,
        description="Fork jobs from a process with the libraries loaded (on Linux without CUDA); otherwise each job loads them itself.",
    )
    checkpoint_s: float = Field(
        60.0, gt=0, description="Seconds between checkpoints, from which a job that was killed or interrupted goes on."
    )
    kubernetes: KubernetesTraining | None = Field(
        None, description="JSON object: jobs as Jobs of Kubernetes, as docs/trainer.md says. Unset: processes of this machine."
    )
    cancel_grace_s: float = Field(2.0, ge=0, le=4, description="Seconds between SIGTERM and SIGKILL when a job is cancelled.")

    @property
    def database(self) -> str:
        """The URL in force."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.resolve() / 'jobs.sqlite'}"

    @field_validator("models", mode="before")
    @classmethod
    def _read_models(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            return json.loads(value)
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(name.strip() and path.strip() for name, _, path in pairs):
            raise ValueError("expected a JSON object or name=path,name=path")
        return {name.strip(): path.strip() for name, _, path in pairs}
