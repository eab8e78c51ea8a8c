"""Soft prompts (PEFT's prompt tuning) of one base model: embeddings that come before those of a prompt. Knows no requests and no proof.

A soft prompt matters until a prompt is read: then it is keys and values like any other past, and its row goes on as one of the base.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

from peft import PromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.generator.adapter_config import misfit, unreadable

_WEIGHTS = "prompt_embeddings"


class SoftPrompts:
    """The soft prompts of one base model. Not safe for changes by several threads at once."""

    def __init__(self, model: PreTrainedModel, context: int) -> None:
        self._embeddings = cast(nn.Embedding, model.get_input_embeddings())
        self._context = context
        self._prompts: dict[str, Tensor] = {}

    @property
    def adapters(self) -> Iterable[str]:
        """Names of those that are in."""
        return self._prompts.keys()

    def load(self, adapter: str, folder: Path, config: PromptTuningConfig, weights: dict[str, Tensor]) -> None:
        """Puts in a soft prompt, as numbers of the type that the base's own embeddings have, which is what PEFT makes of it.

        Raises InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH.
        """
        if config.modules_to_save:
            raise unreadable(folder, "this engine serves plain prompt tuning, without modules_to_save")
        prompt = weights.get(_WEIGHTS)
        if prompt is None or prompt.ndim != 2 or not prompt.is_floating_point():
            raise unreadable(folder, f"its weights have no matrix of numbers called {_WEIGHTS}")
        table = self._embeddings.weight
        count, size = prompt.shape
        extra = sorted(weights.keys() - {_WEIGHTS})
        wrong = {
            f"it is for task {config.task_type}, and the base does CAUSAL_LM": config.task_type != "CAUSAL_LM",
            f"its embeddings have size {size}, and the base's {table.shape[1]}": size != table.shape[1],
            f"it has {count} embeddings for {config.num_virtual_tokens} virtual tokens": count != config.num_virtual_tokens,
            # One token of a prompt and one of an answer have room at least.
            f"its {count} virtual tokens do not fit a context of {self._context}": not 0 < count < self._context - 1,
            f"{len(extra)} weights have no place ({', '.join(extra[:1])}, ...)": bool(extra),
        }
        if any(wrong.values()):
            raise misfit(folder, [why for why, is_wrong in wrong.items() if is_wrong])
        self._prompts[adapter] = prompt.to(table.device, table.dtype)

    def unload(self, adapter: str) -> None:
        """Takes a soft prompt out; nothing happens when it is not in."""
        self._prompts.pop(adapter, None)

    def length(self, adapter: str | None) -> int:
        """Virtual tokens that come before a prompt: none for the base and for adapters of other kinds."""
        prompt = None if adapter is None else self._prompts.get(adapter)
        return 0 if prompt is None else len(prompt)

    def embed(self, ids: Tensor, adapters: Iterable[str | None], ends: Iterable[int]) -> Tensor:
        """Embeddings of `ids`, with those of each row's soft prompt in the columns before `ends`, whatever ids are there."""
        embedded: Tensor = self._embeddings(ids)
        for row, adapter, end in zip(embedded, adapters, ends, strict=True):
            prompt = self._prompts[adapter or ""]
            row[end - len(prompt) : end] = prompt
        return embedded
