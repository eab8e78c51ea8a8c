"""What an adapter's configuration asks of an engine, read without any model library. Knows no engine."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from services.common.errors import FailedPrecondition, InvalidArgument

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What PEFT writes of an adapter."""
_EXTRAS = ("use_dora", "modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens")
"""Settings of PEFT's LoraConfig that add more than low-rank matrices."""


def unreadable(folder: Path, why: str) -> InvalidArgument:
    """InvalidArgument ADAPTER_UNREADABLE."""
    return InvalidArgument("ADAPTER_UNREADABLE", "the adapter in {uri} cannot be read: {why}", uri=folder, why=why, field="uri")


def misfit(folder: Path, reasons: Sequence[str]) -> FailedPrecondition:
    """FailedPrecondition ADAPTER_BASE_MISMATCH."""
    message = "the adapter in {uri} does not fit the base: {why}"
    return FailedPrecondition("ADAPTER_BASE_MISMATCH", message, uri=folder, why="; ".join(reasons))


def is_full_model(folder: Path) -> bool:
    """Whether a folder holds a model of its own, as full fine-tuning makes it, and no adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").exists()


def virtual_tokens(folder: Path) -> int:
    """Tokens of the context that a soft prompt takes; 0 for other adapters, and where nothing can be read: whoever loads it says why."""
    try:
        config: Any = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return int(config["num_virtual_tokens"]) if config["peft_type"] == "PROMPT_TUNING" else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def check_plain_lora(folder: Path, engine: str, modules: Container[str] | None = None) -> None:
    """Raises InvalidArgument ADAPTER_UNREADABLE, and FailedPrecondition ADAPTER_REFUSED for what `engine` would ignore or refuse.

    `modules` are the names of the layers that the engine adapts; None for all linear ones.
    """
    if is_full_model(folder):
        message = (
            "{uri} holds a model of its own, all of whose weights were trained, and no adapter that {engine} could put beside its base: "
            "start {engine} with that folder and name it in TUNETRIAL_ENGINES, or name the folder in TUNETRIAL_MODELS"
        )
        raise FailedPrecondition("ADAPTER_REFUSED", message, uri=folder, engine=engine)
    try:
        config: Any = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(folder, f"adapter_config.json: {type(error).__name__}: {error}") from error
    wrong = []
    if kind != "LORA":
        wrong.append(f"it is of kind {kind}, and the engine serves LORA")
    wrong += [f"it has {name}" for name in _EXTRAS if config.get(name)]
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        wrong.append("it trains biases")
    targets = config.get("target_modules")
    if modules is not None:
        if isinstance(targets, str):
            wrong.append(f"its layers are given by a pattern ({targets}): name them")
        else:
            others = sorted(name for name in targets or () if name.rsplit(".", 1)[-1] not in modules)
            wrong += [f"it adapts {', '.join(others)}, which the engine leaves as they are"] if others else []
    if wrong:
        message = "the adapter in {uri} cannot be served by {engine}: {why}; serve it by engine transformers"
        raise FailedPrecondition("ADAPTER_REFUSED", message, uri=folder, engine=engine, why="; ".join(wrong))
