"""How the retriever reaches Elasticsearch and makes indexes there, from TUNETRIAL_ELASTICSEARCH_*. Knows no client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_ADDRESS = re.compile(r"https?://[^/\s]+:\d+(/|$)")


class ElasticsearchSettings(BaseSettings):
    """See each field's description. Without urls and cloud_id the retriever keeps its indexes itself."""

    # An error about several settings would else show them all, secrets too.
    model_config = SettingsConfigDict(env_prefix="TUNETRIAL_ELASTICSEARCH_", frozen=True, hide_input_in_errors=True)

    urls: str = Field("", description="Addresses of the cluster, separated by ',': https://es-0:9200,https://es-1:9200.")
    cloud_id: str = Field("", description="Cloud id of an Elastic Cloud deployment, instead of urls.")

    api_key: SecretStr | None = Field(None, description="API key, encoded as Elasticsearch gives it.")
    api_key_file: Path | None = Field(None, description="File that holds the API key instead.")
    user: str = Field("", description="User for basic authentication, instead of an API key.")
    password: SecretStr | None = Field(None, description="Password of the user.")
    password_file: Path | None = Field(None, description="File that holds the password instead.")

    ca_file: Path | None = Field(None, description="PEM file with the CA of the cluster's certificates; unset for the system's CAs.")
    fingerprint: str = Field(
        "",
        pattern="^([0-9a-fA-F]{2}(:?[0-9a-fA-F]{2}){31})?$",
        description="SHA-256 fingerprint, in hexadecimal, of the cluster's certificate or of its CA, instead of ca_file.",
    )
    client_certificate: Path | None = Field(None, description="PEM file with the client's certificate chain.")
    client_key: Path | None = Field(None, description="PEM file with the client's private key.")

    timeout_s: float = Field(30.0, gt=0, description="Longest wait for one answer; merging at the seal may take longer.")
    retries: int = Field(3, ge=0, description="Further attempts after a lost connection, 429, 502, 503 and 504; never after a time-out.")
    connections: int = Field(16, ge=1, description="Connections to each node.")
    search_requests: int = Field(2, ge=1, description="Search requests under way at once; callers beyond them share the next one.")
    compress: bool = Field(False, description="Compress requests and responses; for a cluster far away.")
    sniff: bool = Field(False, description="Ask the cluster for its nodes and talk to them directly.")

    prefix: str = Field("tunetrial-", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="How the names of all indexes and aliases begin.")
    shards: int = Field(1, ge=1, le=64, description="Shards of a new index.")
    replicas: int = Field(1, ge=0, le=16, description="Replicas of a new index.")
    analyzer: str = Field("standard", min_length=1, description="Analyzer of a new index whose settings name no language.")
    vector_index: Literal["hnsw", "int8_hnsw", "int4_hnsw", "bbq_hnsw", "flat", "int8_flat", "int4_flat", "bbq_flat"] = Field(
        "hnsw",
        description="How vectors are kept: a number in 32, 8, 4 bits or 1 (bbq), in a graph (hnsw) or a list (flat: exact, slow).",
    )
    candidates: int = Field(
        200, ge=1, le=10_000, description="Vectors that each shard compares for a query, at least; more finds nearer ones and takes longer."
    )
    merge_segments: int = Field(1, ge=0, le=100, description="Segments that a shard is merged to at the seal; 0 leaves them as they are.")
    server_fusion: bool = Field(
        False,
        description="The cluster fuses hybrid searches (its rrf retriever, which needs a licence); hits then lack the legs.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        name = "TUNETRIAL_ELASTICSEARCH_"
        if self.urls and self.cloud_id:
            raise ValueError(f"set {name}URLS or {name}CLOUD_ID, not both")
        ways = [self.api_key is not None, self.api_key_file is not None, bool(self.user)]
        if sum(ways) > 1:
            raise ValueError(f"set one of {name}API_KEY, {name}API_KEY_FILE and {name}USER")
        if bool(self.user) != (self.password is not None or self.password_file is not None):
            raise ValueError(f"{name}USER goes with {name}PASSWORD or {name}PASSWORD_FILE")
        if self.password is not None and self.password_file is not None:
            raise ValueError(f"set {name}PASSWORD or {name}PASSWORD_FILE, not both")
        if self.ca_file is not None and self.fingerprint:
            raise ValueError(f"set {name}CA_FILE or {name}FINGERPRINT, not both")
        # Without the address itself in the message: it may hold a password.
        if not all(_ADDRESS.match(url) for url in self.addresses):
            raise ValueError(f"{name}URLS are addresses with their port, such as https://es-0:9200")
        if self.fingerprint and not (self.addresses and all(url.startswith("https://") for url in self.addresses)):
            raise ValueError(f"{name}FINGERPRINT goes with {name}URLS that begin with https://")
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError(f"{name}CLIENT_KEY goes with {name}CLIENT_CERTIFICATE")
        return self

    @property
    def wanted(self) -> bool:
        """Whether indexes are kept in Elasticsearch."""
        return bool(self.urls or self.cloud_id)

    @property
    def addresses(self) -> list[str]:
        """The urls, one by one."""
        return [url.strip() for url in self.urls.split(",") if url.strip()]

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments of AsyncElasticsearch, without the fingerprint. Raises OSError, or ValueError for an empty file."""
        options: dict[str, Any] = {
            "request_timeout": self.timeout_s,
            "max_retries": self.retries,
            "retry_on_timeout": False,
            "retry_on_status": (429, 502, 503, 504),
            "connections_per_node": self.connections,
            "http_compress": self.compress,
            "sniff_on_start": self.sniff,
            "sniff_on_node_failure": self.sniff,
        }
        if self.cloud_id:
            options["cloud_id"] = self.cloud_id
        else:
            options["hosts"] = self.addresses
        key = _secret(self.api_key, self.api_key_file)
        if key is not None:
            options["api_key"] = key
        if self.user:
            options["basic_auth"] = (self.user, _secret(self.password, self.password_file))
        if self.ca_file is not None:
            options["ca_certs"] = str(self.ca_file)
        if self.client_certificate is not None:
            options["client_cert"] = str(self.client_certificate)
            options["client_key"] = str(self.client_key) if self.client_key else None
        return options


def _secret(value: SecretStr | None, file: Path | None) -> str | None:
    if file is None:
        return value.get_secret_value() if value is not None else None
    secret = file.read_text(encoding="utf-8").strip()
    if not secret:
        raise ValueError(f"{file} is empty: it should hold a credential for Elasticsearch")
    return secret
