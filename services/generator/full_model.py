"""Models that full fine-tuning made of a base: read from their folders, once they are seen to be of the base's shape. Knows no batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from services.generator.adapter_config import misfit, unreadable
from services.generator.chat_tokenizer import ChatTokenizer

_ALLOWED_TO_DIFFER = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
"""Settings of a model's configuration that change neither its shape nor its numbers."""
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)


def read_full_model(folder: Path, base: PreTrainedModel, tokenizer: ChatTokenizer) -> PreTrainedModel:
    """The model in a folder, where the base is and as numbers of the base's type. For any thread; takes as much memory as the base.

    Raises InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH when it is of another shape or reads other tokens.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        own = ChatTokenizer(str(folder), folder)
    except _UNREADABLE as error:
        raise unreadable(folder, f"{type(error).__name__}: {error}") from error
    wrong = _differences(base.config, config)
    reasons = [f"its config.json says otherwise of {', '.join(wrong[:5])}"] if wrong else []
    # Prompts are tokenized once, whatever model reads them.
    if _tokens(own) != _tokens(tokenizer):
        reasons.append("its tokenizer or chat template is not the base's")
    if reasons:
        raise misfit(folder, reasons)
    read: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, found = read(folder, dtype=base.dtype, use_safetensors=True, output_loading_info=True)
    except _UNREADABLE as error:
        raise unreadable(folder, f"{type(error).__name__}: {error}") from error
    # The library would make up weights that are not there.
    reasons = [
        f"{len(names)} weights {what} ({', '.join(sorted(map(str, names))[:1])}, ...)"
        for what, names in (("are missing", found["missing_keys"]), ("have no place", found["unexpected_keys"]))
        if names
    ]
    if reasons:
        raise misfit(folder, reasons)
    ready: PreTrainedModel = model.to(base.device).eval().requires_grad_(False)
    return ready


def _differences(base: PretrainedConfig, config: PretrainedConfig) -> list[str]:
    ones, others = base.to_dict(), config.to_dict()
    return sorted(name for name in ones.keys() | others.keys() if name not in _ALLOWED_TO_DIFFER and ones.get(name) != others.get(name))


def _tokens(tokenizer: ChatTokenizer) -> tuple[Any, ...]:
    library = tokenizer.library
    return library.get_vocab(), library.chat_template, library.bos_token, library.eos_token
