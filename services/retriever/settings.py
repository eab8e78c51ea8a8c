"""What the retriever takes from its environment, all with the prefix TUNETRIAL_."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.settings import ServerSettings


class Settings(ServerSettings):
    """See each field's description."""

    port: int = Field(7001, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path(".tunetrial/retriever"), description="Folder of the indexes; one process at a time may use it.")
    encoder: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="sentence-transformers model (name or path) of indexes that name none; the default is installed with the service.",
    )
    device: str = Field("cpu", min_length=1, description="Where encoders run, as torch names it: cpu, cuda, cuda:1, mps.")
    threads: int = Field(1, ge=1, description="Threads that an encoder uses on the CPU.")
    encode_batch: int = Field(32, ge=1, description="Texts that go through an encoder at once.")
    max_encoders: int = Field(4, ge=1, description="Encoders kept in memory; the one unused for longest makes room.")
    max_encoder_queue: int = Field(4096, ge=1, description="Queries waiting for an encoder; more are refused with RESOURCE_EXHAUSTED.")
    ingest_batch: int = Field(256, ge=1, description="Passages that are encoded and stored together.")
    max_passages: int = Field(200_000, ge=1, description="Passages in one embedded index; its dense leg reads every vector for each query.")
    batch_search_concurrency: int = Field(16, ge=1, description="Queries of one BatchSearch that run at once.")
