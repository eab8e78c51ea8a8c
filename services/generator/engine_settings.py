"""What an operator says of each engine: TUNETRIAL_ENGINES, a JSON object of them by the name of their base. Contacts nothing."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/@]+(/\S*)?$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TransformersSettings(_Part):
    """A model in this process."""

    engine: Literal["transformers"]
    source: str = Field(min_length=1, description="Folder with safetensors weights, or hub name.")


class _Remote(_Part):
    timeout_s: float = Field(600.0, gt=0, description="Longest wait for the next bytes of an answer.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection.")
    concurrency: int = Field(64, ge=1, description="Requests at once, over all replicas; more wait here.")
    api_key_file: Path | None = Field(None, description="File with the API key, read at the start; openai: again when refused.")
    api_key_variable: str = Field("", description="Environment variable with the API key, instead of a file.")
    ca_file: Path | None = Field(None, description="PEM file with the CA of the engine's certificate; unset for the system's.")

    def api_key(self) -> SecretStr | None:
        """The key, where one is set. Raises ValueError when it is set but not to be had."""
        if self.api_key_file is not None and self.api_key_variable:
            raise ValueError("give api_key_file or api_key_variable, not both")
        if self.api_key_file is not None:
            try:
                return SecretStr(self.api_key_file.read_text(encoding="utf-8").strip())
            except OSError as error:
                raise ValueError(f"api_key_file {self.api_key_file} cannot be read: {error.strerror}") from error
        if not self.api_key_variable:
            return None
        if not os.environ.get(self.api_key_variable):
            raise ValueError(f"api_key_variable names {self.api_key_variable}, which is not set")
        return SecretStr(os.environ[self.api_key_variable])

    def trust(self) -> ssl.SSLContext:
        """What certificates are accepted. Raises ValueError when the CA cannot be read."""
        try:
            return ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file is not None else None)
        except OSError as error:
            raise ValueError(f"ca_file {self.ca_file} cannot be read: {error}") from error


class _Replicated(_Remote):
    urls: tuple[Url, ...] = Field(min_length=1, description="Address of each replica, without /v1; behind one address only one process.")
    source: str = Field(min_length=1, description="Folder or hub name of the base model: its tokenizer and chat template.")
    adapter_folder: Path | None = Field(
        None, description="Folder that the engine shares: adapters are copied there before they are loaded. Unset: it sees the same paths."
    )
    adapter_folder_on_engine: str = Field("", description="The same folder as the engine sees it; unset when it is the same path.")


class VllmSettings(_Replicated):
    """A base and its adapters on vLLM."""

    engine: Literal["vllm"]
    model: str = Field("", description="Name under which vLLM serves the base; unset for the base's own.")


class KubernetesSettings(_Part):
    """The workload of an engine that is started anew for other adapters; reached as a pod's service account, or by KUBECONFIG."""

    kind: Literal["StatefulSet", "Deployment"] = Field("StatefulSet", description="Kind of the workload.")
    name: str = Field(min_length=1, description="Name of the workload.")
    namespace: str = Field("", description="Its namespace; unset: the generator's own.")
    container: str = Field("", description="The container of TGI, whose LORA_ADAPTERS is the start list; unset: the first.")
    timeout_s: float = Field(1800.0, gt=0, description="Longest wait for all pods to be ready; then the old list is put back.")


class TgiSettings(_Replicated):
    """A base and the adapters of its start list on Text Generation Inference."""

    engine: Literal["tgi"]
    adapters: tuple[str, ...] = Field((), description="Names of LORA_ADAPTERS as TGI was started with: it can apply no others.")
    kubernetes: KubernetesSettings | None = Field(
        None, description="Workload to start anew for an adapter that is not on the list; unset: the operator is told what to do."
    )


class OpenAISettings(_Remote):
    """A model of a provider, by the OpenAI protocol."""

    engine: Literal["openai"]
    url: Url = Field("https://api.openai.com/v1", description="Address of the API, with its version.")
    model: str = Field(min_length=1, description="Name of the model at the provider.")
    answers_as: str = Field(
        "", description="Name in the provider's answers where it is not `model`, as behind a deployment; a dated snapshot of it will do."
    )
    retries: int = Field(
        5, ge=0, le=20, description="Further tries after 408, 409, 429, 5xx and lost connections, as long as the provider says."
    )
    context_tokens: int = Field(0, ge=0, description="Longest prompt and answer together, for ListModels; 0 when unknown.")
    usd_per_million_input_tokens: float | None = Field(None, ge=0, description="Price; unset: costs are unknown.")
    usd_per_million_cached_input_tokens: float | None = Field(None, ge=0, description="Price of cached ones; unset: as all others.")
    usd_per_million_output_tokens: float | None = Field(None, ge=0, description="Price; unset: costs are unknown.")
    tuned_usd_per_million_input_tokens: float | None = Field(None, ge=0, description="Price of the base's fine-tuned models.")
    tuned_usd_per_million_cached_input_tokens: float | None = Field(None, ge=0, description="Price of cached ones; unset: as all others.")
    tuned_usd_per_million_output_tokens: float | None = Field(None, ge=0, description="Price of the base's fine-tuned models.")


EngineSettings = Annotated[
    TransformersSettings | VllmSettings | TgiSettings | OpenAISettings,
    Field(discriminator="engine"),
]
