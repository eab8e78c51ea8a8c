"""What the trainer takes from its environment, all as `TUNETRIAL_*`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.common.object_store import is_url, read_options
from services.common.settings import ServerSettings
from services.trainer.domain import Store
from services.trainer.hosted_settings import HostedTraining
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
    four_bit_on_cpu: bool = Field(False, description="Train jobs with four_bit without CUDA too, slowly: to try a spec out.")
    adapters_url: str = Field(
        "",
        description="Where adapters are published: URL of an object store, as s3://bucket/adapters, gs:// or az://, or a folder. "
        "Empty: the folder `adapters` under data_dir.",
    )
    store_options: Annotated[dict[str, Any], NoDecode] = Field(
        default_factory=dict,
        description='JSON object: what the library of that store is told, {"endpoint_url": "https://..."}; no secrets, which it '
        "takes from its own variables.",
    )
    store_patience_s: float = Field(
        300.0, ge=0, description="Seconds that a job which has trained waits for an object store that is away, before it fails."
    )
    report_to: Annotated[tuple[Literal["mlflow", "wandb"], ...], NoDecode] = Field(
        (),
        description="Who else is told how jobs go, separated by ',': mlflow, wandb. Their settings and figures only; the libraries take "
        "addresses and credentials from their own variables.",
    )
    kubernetes: KubernetesTraining | None = Field(
        None, description="JSON object: jobs as Jobs of Kubernetes, as docs/trainer.md says. Unset: processes of this machine."
    )
    hosted: HostedTraining | None = Field(
        None, description="JSON object: the provider that trains hosted jobs, as docs/trainer.md says. Unset: method hosted is refused."
    )
    cancel_grace_s: float = Field(2.0, ge=0, le=4, description="Seconds between SIGTERM and SIGKILL when a job is cancelled.")

    @property
    def database(self) -> str:
        """The URL in force."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.resolve() / 'jobs.sqlite'}"

    @property
    def adapters_folder(self) -> Path:
        """Where adapters are published that go to no object store."""
        url = self.adapters_url
        if not url or is_url(url):
            return self.data_dir.resolve() / "adapters"
        return Path(unquote(url.removeprefix("file://"))).resolve()

    @property
    def store(self) -> Store | None:
        """The object store for adapters, if there is one."""
        return Store(self.adapters_url.rstrip("/"), self.store_options, self.store_patience_s) if is_url(self.adapters_url) else None

    @field_validator("report_to", mode="before")
    @classmethod
    def _read_names(cls, value: Any) -> Any:
        names = [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
        lacking = [name for name in names if name in ("mlflow", "wandb") and find_spec(name) is None]
        if lacking:
            raise ValueError(f"{', '.join(lacking)} is not installed here: pip install {' '.join(lacking)}")
        return names

    @field_validator("store_options", mode="before")
    @classmethod
    def _read_options(cls, value: Any) -> Any:
        return read_options(value) if isinstance(value, str) else value

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
