"""An adapter's configuration and weights out of its folder, by PEFT and safetensors. Knows no model."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from services.generator.adapter_config import unreadable


def read_weights(folder: Path) -> tuple[PeftConfig, dict[str, Tensor]]:
    """What PEFT wrote; pickles are not read. Raises InvalidArgument ADAPTER_UNREADABLE."""
    try:
        return PeftConfig.from_pretrained(str(folder)), load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise unreadable(folder, f"{type(error).__name__}: {error}") from error
