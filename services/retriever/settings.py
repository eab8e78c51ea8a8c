"""What the retriever takes from its environment, all with the prefix TUNETRIAL_."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

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
    encode_batch: int = Field(16, ge=1, description="Texts that go through an encoder at once; 16 is best on a core, a GPU wants hundreds.")
    max_encoders: int = Field(4, ge=1, description="Encoders kept in memory; the one unused for longest makes room.")
    max_encoder_queue: int = Field(4096, ge=1, description="Queries waiting for an encoder; more are refused with RESOURCE_EXHAUSTED.")
    ingest_batch: int = Field(512, ge=1, description="Passages that are sorted by length, encoded and stored together.")
    embedding_cache: Path | None = Field(
        None, description="Folder of the vectors of passages encoded before, on a local disk; unset: `embeddings` beside data_dir."
    )
    embedding_cache_mb: int = Field(1024, ge=0, description="Most megabytes of such vectors, the oldest make room; 0 keeps none.")
    reranker: str = Field("", description="Cross-encoder (name or path) of searches with `rerank`; empty for none.")
    rerank_window: int = Field(50, ge=1, le=1000, description="Passages of a search that the reranker sees.")
    rerank_batch: int = Field(16, ge=1, description="Pairs of query and passage that go through the reranker at once.")
    max_rerank_queue: int = Field(4096, ge=1, description="Pairs waiting for the reranker; more are refused with RESOURCE_EXHAUSTED.")
    max_passages: int = Field(200_000, ge=1, description="Passages in one embedded index; its dense leg reads every vector for each query.")
    batch_search_concurrency: int = Field(16, ge=1, description="Queries of one BatchSearch that run at once.")

    @model_validator(mode="after")
    def _one_search_fits(self) -> Settings:
        if self.rerank_window > self.max_rerank_queue:
            raise ValueError("max_rerank_queue must be at least rerank_window, or no search could be reranked")
        return self

    @property
    def embeddings(self) -> Path:
        """Where vectors of passages are kept."""
        return self.data_dir.parent / "embeddings" if self.embedding_cache is None else self.embedding_cache
