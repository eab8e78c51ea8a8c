"""What every service process takes from its environment. Knows no service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """Read from `TUNETRIAL_*`; a service's own settings inherit from it. An unknown value is an error at start."""

    # An error about several settings would else show them all, secrets too.
    model_config = SettingsConfigDict(env_prefix="TUNETRIAL_", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    port_file: Path | None = Field(None, description="File that gets the port once the server listens.")
    stop_with_stdin: bool = Field(False, description="Drain and stop when standard input ends, that is, when the parent process is gone.")

    max_message_bytes: int = Field(16 * 2**20, ge=2**16, description="Largest message taken or sent, in bytes.")
    max_concurrent_calls: int = Field(512, ge=1, description="Calls at once; more are refused with RESOURCE_EXHAUSTED.")
    max_call_s: float = Field(3600.0, gt=0, description="Longest a call may take, in seconds, whatever deadline it brings.")
    drain_s: float = Field(10.0, ge=0, description="Seconds that running calls get to finish after SIGTERM.")

    health_interval_s: float = Field(5.0, gt=0, description="Seconds between looks at what the service needs, and the most that one takes.")

    tls_certificate: Path | None = Field(None, description="PEM file with the server's certificate chain; with tls_key turns TLS on.")
    tls_key: Path | None = Field(None, description="PEM file with the server's private key.")
    tls_client_ca: Path | None = Field(None, description="PEM file with the CA of client certificates; turns mutual TLS on.")
    token_file: Path | None = Field(None, description="File with lines `token role`, role `use` or `admin`; turns bearer tokens on.")

    uri_roots: str = Field(
        "",
        description="Folders that URIs in requests may point into, separated by ':'; empty allows none. For the generator's adapters also "
        "URLs of object stores, as s3://bucket/adapters.",
    )

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least severe log line written.")
    log_json: bool = Field(True, description="Log as JSON lines; otherwise as text for people.")
    otlp_endpoint: str = Field("", description="OTLP gRPC endpoint for traces; empty for none.")
    metrics_port: int | None = Field(None, description="Port for Prometheus metrics; unset for none.")
