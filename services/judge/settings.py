"""What the judge takes from its environment: `TUNETRIAL_` and a field's name in capitals. Knows no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from services.common.settings import ServerSettings
from services.judge.domain import Price


class Settings(ServerSettings):
    """The judge's own."""

    port: int = Field(7004, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    default_engine: Literal["reference", "openai"] = Field("reference", description="Engine of rubrics that name none.")
    data_dir: Path = Field(Path(".tunetrial/judge"), description="Folder that keeps the rubrics.")
    batch_in_flight: int = Field(64, ge=1, description="Answers of one BatchJudge stream that are judged at once.")

    threads: int = Field(1, ge=1, description="CPU threads of the encoder.")
    encoder: str = Field("all-MiniLM-L6-v2", description="Any sentence-transformers name or path; the default needs no network.")
    encoder_batch_size: int = Field(64, ge=1, description="Texts encoded at once.")
    remembered_embeddings: int = Field(20_000, ge=0, description="Embeddings kept in memory, 1.5 kB each for the default encoder.")
    abstentions: list[str] = Field(default_factory=list, description="JSON list of texts that mean 'no answer', beside the usual phrases.")

    openai_base_url: str = Field("", description="OpenAI-compatible endpoint, usually ending in /v1; empty with a key means OpenAI's own.")
    openai_api_key: SecretStr | None = Field(None, description="Key of the endpoint; unset for one that asks for none.")
    openai_api_key_file: Path | None = Field(None, description="File that holds the key instead.")
    openai_model: str = Field("", description="Judge model of rubrics that name none.")
    openai_timeout_s: float = Field(120.0, gt=0, description="Longest wait for one attempt, in seconds.")
    openai_max_retries: int = Field(5, ge=0, description="Further attempts after 429, 5xx, time-outs and lost connections.")
    openai_concurrency: int = Field(32, ge=1, description="Requests in flight.")
    openai_max_tokens: int = Field(256, ge=1, description="Token limit of a judge's reply.")
    openai_token_limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Name of the token limit in requests; OpenAI's reasoning models want the second."
    )
    openai_prices: dict[str, Price] = Field(
        default_factory=dict,
        description='JSON {model: {"input_per_million": USD, "output_per_million": USD}}; without a price cost is unset.',
    )
    remembered_runs: int = Field(50_000, ge=0, description="Judge runs kept in memory, so that identical answers are judged once.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.openai_api_key is not None and self.openai_api_key_file is not None:
            raise ValueError("set TUNETRIAL_OPENAI_API_KEY or TUNETRIAL_OPENAI_API_KEY_FILE, not both")
        for model, price in self.openai_prices.items():
            if not (price.input_per_million >= 0 and price.output_per_million >= 0):
                raise ValueError(f"TUNETRIAL_OPENAI_PRICES: a price of {model} is below 0")
        if self.default_engine == "openai" and not self.has_openai:
            raise ValueError("TUNETRIAL_DEFAULT_ENGINE=openai needs TUNETRIAL_OPENAI_BASE_URL or TUNETRIAL_OPENAI_API_KEY")
        return self

    @property
    def has_openai(self) -> bool:
        """Whether the engine openai is there."""
        return bool(self.openai_base_url) or self.openai_api_key is not None or self.openai_api_key_file is not None

    def read_api_key(self) -> str | None:
        """The key. Raises OSError, or ValueError when its file is empty."""
        if self.openai_api_key_file is None:
            return self.openai_api_key.get_secret_value() if self.openai_api_key else None
        key = self.openai_api_key_file.read_text(encoding="utf-8").strip()
        if not key:
            raise ValueError(f"{self.openai_api_key_file} holds no key")
        return key
