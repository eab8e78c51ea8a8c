"""What an operator says of a provider's fine-tuning service: TUNETRIAL_HOSTED, a JSON object. Contacts nothing."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from services.common.errors import FailedPrecondition

_Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/@]+(/\S*)?$")]
_NO_KEY = "none"
"""The client wants some key; services without keys ignore it."""


class HostedTraining(BaseModel):
    """A provider, and how it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: _Url = Field("https://api.openai.com/v1", description="Address of the API, with its version.")
    api_key_file: Path | None = Field(None, description="File with the API key; read again when the key is refused.")
    api_key_variable: str = Field("", description="Environment variable with the API key, instead of a file.")
    ca_file: Path | None = Field(None, description="PEM file with the CA of the provider's certificate; unset for the system's.")
    poll_s: float = Field(15.0, gt=0, description="Seconds between two looks at a job.")
    timeout_s: float = Field(600.0, gt=0, description="Longest wait for the next bytes of an answer, an upload's included.")
    connect_timeout_s: float = Field(10.0, gt=0, description="Longest wait for a connection.")
    settle_s: float = Field(
        30.0,
        ge=0,
        description="So long after a request whose answer was lost, its job is looked for in the provider's list before another.",
    )

    @model_validator(mode="after")
    def _readable(self) -> HostedTraining:
        self.api_key()
        self.trust()
        return self

    def api_key(self) -> str:
        """The key in force. Raises ValueError when it is set but not to be had."""
        if self.api_key_file is not None and self.api_key_variable:
            raise ValueError("give api_key_file or api_key_variable, not both")
        if self.api_key_file is not None:
            try:
                key = self.api_key_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ValueError(f"api_key_file {self.api_key_file} cannot be read: {error.strerror}") from error
        elif self.api_key_variable:
            key = os.environ.get(self.api_key_variable, "")
        else:
            return _NO_KEY
        # A header cannot carry others, and what fails on them would show the key.
        if not key or not all("!" <= character <= "~" for character in key):
            raise ValueError("the API key is not set, empty, or has spaces, line breaks or letters outside ASCII")
        return key

    def trust(self) -> ssl.SSLContext:
        """What certificates are accepted. Raises ValueError when the CA cannot be read."""
        try:
            return ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file is not None else None)
        except OSError as error:
            raise ValueError(f"ca_file {self.ca_file} cannot be read: {error}") from error


def not_configured() -> FailedPrecondition:
    """The error for hosted jobs of a trainer that knows no provider."""
    message = (
        "this trainer knows no provider: set TUNETRIAL_HOSTED to a JSON object with its url and where its key is, as docs/trainer.md says"
    )
    return FailedPrecondition("HOSTED_NOT_CONFIGURED", message, field="spec.hosted")
