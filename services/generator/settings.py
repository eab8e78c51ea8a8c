"""What the generator takes from its environment."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic_settings import NoDecode

from services.common.object_store import read_options
from services.common.settings import ServerSettings
from services.generator.engine_settings import EngineSettings, TransformersSettings

_ENGINES: TypeAdapter[dict[str, EngineSettings]] = TypeAdapter(dict[str, EngineSettings])


class Settings(ServerSettings):
    """Settings of the generator, from `TUNETRIAL_*`."""

    port: int = Field(7002, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    models: Annotated[dict[str, str], NoDecode] = Field(
        {},
        description="Base models in this process, by name: JSON object, or `name=path` separated by ','; a path is that of a folder with "
        "safetensors, or a hub name.",
    )
    engines: dict[str, EngineSettings] = Field({}, description="Engines by the names of their bases, a JSON object; see docs/generator.md.")
    engines_file: Path | None = Field(None, description="JSON file with such an object, beside or instead of `engines`.")
    put_back: Literal["all", "aliased"] = Field(
        "all", description="Which adapters are served again after a restart: all that were loaded, or those that an alias stands for."
    )
    watch_s: float = Field(5.0, gt=0, description="Seconds between looks at which replicas run and what they serve.")
    data_dir: Path = Field(Path(".tunetrial/generator"), description="Folder for what must survive a restart: adapters served and aliases.")
    store_options: Annotated[dict[str, Any], NoDecode] = Field(
        {},
        description='JSON object: what the libraries of object stores are told, {"endpoint_url": "https://..."}; no secrets, which they '
        "take from their own variables.",
    )
    adapter_cache_bytes: int = Field(
        20 * 2**30, ge=0, description="Bytes that adapters of object stores may take under data_dir; those that are served are not removed."
    )
    dtype: str = Field(
        "float32", pattern="^(float32|float16|bfloat16|auto)$", description="Type of the weights in memory; auto is the checkpoint's."
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?|mps)$", description="Where models run.")
    threads: int = Field(1, ge=1, description="Threads of the CPU that one forward pass uses.")
    batch_size: int = Field(32, ge=1, description="Requests that generate together, per base.")
    full_models: int = Field(
        4,
        ge=0,
        description="Fully fine-tuned models beside a base on transformers; each takes as much memory as the base. More are refused with "
        "FULL_MODELS_TOO_MANY.",
    )
    queue_limit: int = Field(256, ge=0, description="Requests that wait, per base; more are refused with QUEUE_FULL.")
    prefill_tokens: int = Field(
        512,
        ge=1,
        description="Prompt tokens that one step takes in together; longer prompts go one by one, best on a CPU. Raise it on a GPU.",
    )
    batch_in_flight: int = Field(64, ge=1, description="Requests of one BatchGenerate stream under way at once.")
    max_tokens: int = Field(4096, ge=1, description="Most tokens that a request may ask for.")
    adapter_tolerance: float = Field(
        0.05,
        gt=0,
        description="Nats by which an adapter's log-probabilities may differ from its manifest; for float32, raise it for others.",
    )
    retriever_address: str = Field("", description="host:port of the retriever; empty: Answer takes given passages only.")
    retriever_tls_ca: Path | None = Field(None, description="PEM file with the CA of the retriever's certificate; turns TLS on.")
    retriever_tls_certificate: Path | None = Field(None, description="PEM file with our certificate, for mutual TLS.")
    retriever_tls_key: Path | None = Field(None, description="PEM file with our private key, for mutual TLS.")
    retriever_token: SecretStr = Field(SecretStr(""), description="Bearer token for the retriever; needs retriever_tls_ca.")

    @field_validator("store_options", mode="before")
    @classmethod
    def _read_options(cls, value: Any) -> Any:
        return read_options(value) if isinstance(value, str) else value

    @field_validator("engines_file", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        return value or None

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

    def all_engines(self) -> dict[str, EngineSettings]:
        """All engines by the names of their bases. Raises ValueError where there is none, one is named twice, or the file is wrong."""
        found: list[tuple[str, EngineSettings]] = [
            (name, TransformersSettings(engine="transformers", source=source)) for name, source in self.models.items()
        ]
        found += self.engines.items()
        if self.engines_file is not None:
            try:
                found += _ENGINES.validate_json(self.engines_file.read_bytes()).items()
            except OSError as error:
                raise ValueError(f"TUNETRIAL_ENGINES_FILE {self.engines_file} cannot be read: {error.strerror}") from error
            except ValidationError as error:
                raise ValueError(f"TUNETRIAL_ENGINES_FILE {self.engines_file}: {error}") from error
        if not found:
            raise ValueError("name at least one base model: TUNETRIAL_MODELS=name=path, or TUNETRIAL_ENGINES")
        twice = sorted(name for name, count in Counter(name for name, _ in found).items() if count > 1)
        if twice:
            raise ValueError(f"these base models are named twice: {', '.join(twice)}")
        return dict(found)
