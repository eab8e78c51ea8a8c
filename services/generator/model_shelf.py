"""A base and all that is served beside it by engine transformers, with the batches that they generate in. Knows no requests and no proof.

The base, LoRA adapters and soft prompts share one batch. A model that full fine-tuning made has weights of its own, and so a batch of its
own; each step is one pass for each model that has something to say.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftType, PromptTuningConfig
from torch import Tensor
from transformers import PreTrainedModel

from services.common.errors import ResourceExhausted
from services.generator.adapter_config import is_full_model, unreadable
from services.generator.adapter_weights import read_weights
from services.generator.chat_tokenizer import ChatTokenizer
from services.generator.continuous_batch import ContinuousBatch, Row
from services.generator.full_model import read_full_model
from services.generator.lora_rack import LoraRack
from services.generator.soft_prompts import SoftPrompts

_Read = PreTrainedModel | tuple[PeftConfig, dict[str, Tensor]]
_Scored = tuple[str | None, tuple[int, ...], tuple[int, ...]]


class ModelShelf:
    """Not safe for use by several threads at once, but for `read`."""

    def __init__(self, model: PreTrainedModel, tokenizer: ChatTokenizer, context: int, most_full: int) -> None:
        """`context` is the base's, in tokens; `most_full` the number of models with weights of their own that may be beside it."""
        self._model, self._tokenizer, self._context, self._most_full = model, tokenizer, context, most_full
        self._spell = tokenizer.speller()
        self.rack, self.soft = LoraRack(model), SoftPrompts(model, context)
        self.batch = self._batch_of(model, self.rack, self.soft)
        """That of the base, LoRA adapters and soft prompts."""
        self._full: dict[str, ContinuousBatch] = {}

    @property
    def names(self) -> Iterable[str]:
        """Of all adapters that are in."""
        return (*self.rack.adapters, *self.soft.adapters, *self._full)

    def is_full(self, adapter: str | None) -> bool:
        """Whether an adapter that is in has weights of its own."""
        return adapter in self._full

    def read(self, adapter: str, folder: Path) -> _Read:
        """What `put_in` takes: the weights in a folder. For any thread.

        Raises InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH, ResourceExhausted FULL_MODELS_TOO_MANY or
        MEMORY_EXHAUSTED.
        """
        if not is_full_model(folder):
            return read_weights(folder)
        others = self._full.keys() - {adapter}
        if len(others) >= self._most_full:
            message = (
                "{name} is a model of its own and takes {size} MiB of memory, as much as its base; {count} such models are there, and "
                "{most} may be: unload one, or raise TUNETRIAL_FULL_MODELS"
            )
            size = sum(weights.nbytes for weights in self._model.parameters()) >> 20
            raise ResourceExhausted("FULL_MODELS_TOO_MANY", message, name=adapter, size=size, count=len(others), most=self._most_full)
        try:
            return read_full_model(folder, self._model, self._tokenizer)
        except torch.OutOfMemoryError:
            message = "there is no memory left for {name}, which takes as much as its base: unload another model"
            # Without its cause, which holds what was read of the model.
            raise ResourceExhausted("MEMORY_EXHAUSTED", message, name=adapter) from None

    def put_in(self, adapter: str, folder: Path, read: _Read) -> None:
        """Puts an adapter in, in place of one of its name: InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH."""
        kinds: tuple[Callable[[str], Any], ...]
        if isinstance(read, PreTrainedModel):
            self._unload_full(adapter)
            self._full[adapter] = self._batch_of(read, LoraRack(read), SoftPrompts(read, self._context))
            kinds = (self.rack.unload, self.soft.unload)
        else:
            config, weights = read
            if isinstance(config, LoraConfig) and config.peft_type == PeftType.LORA:
                self.rack.load(adapter, folder, config, weights)
                kinds = (self.soft.unload, self._unload_full)
            # Other kinds of prompt tuning are of the same class.
            elif isinstance(config, PromptTuningConfig) and config.peft_type == PeftType.PROMPT_TUNING:
                self.soft.load(adapter, folder, config, weights)
                kinds = (self.rack.unload, self._unload_full)
            else:
                raise unreadable(folder, f"it is of kind {config.peft_type}, and this engine serves LORA and PROMPT_TUNING")
        for unload in kinds:
            unload(adapter)

    def take_out(self, adapter: str) -> None:
        """Takes an adapter out; nothing happens when it is not in."""
        self.rack.unload(adapter)
        self.soft.unload(adapter)
        self._unload_full(adapter)

    def step(self, admit: Sequence[Row], leave: frozenset[Row]) -> list[tuple[Row, str]]:
        """A step of every batch that has rows or gets some: rows that made progress, with their new text."""
        progress: list[tuple[Row, str]] = []
        for name, batch in self._batches():
            newcomers = [row for row in admit if row.full == name]
            if newcomers or not batch.empty:
                progress += batch.step(newcomers, leave)
        return progress

    def score(self, rows: Sequence[_Scored]) -> list[tuple[float, ...]]:
        """Log-probabilities of completions after prompts, teacher-forced; a row is adapter, prompt and completion."""
        scores: list[tuple[float, ...]] = [()] * len(rows)
        for name, batch in self._batches():
            places = [place for place, (adapter, _, _) in enumerate(rows) if (adapter if self.is_full(adapter) else None) == name]
            if places:
                mine = [(None if name else rows[place][0], *rows[place][1:]) for place in places]
                for place, score in zip(places, batch.score(mine), strict=True):
                    scores[place] = score
        return scores

    def clear(self) -> None:
        """Forgets all rows."""
        for _, batch in self._batches():
            batch.clear()

    def _batches(self) -> list[tuple[str | None, ContinuousBatch]]:
        return [(None, self.batch), *self._full.items()]

    def _batch_of(self, model: PreTrainedModel, rack: LoraRack, soft: SoftPrompts) -> ContinuousBatch:
        ends = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = self._tokenizer.library.eos_token_id if ends is None else ends
        return ContinuousBatch(model, rack, soft, frozenset(ends if isinstance(ends, list) else [ends]), self._spell)

    def _unload_full(self, adapter: str) -> None:
        if self._full.pop(adapter, None) is not None:
            # A model refers to itself, and goes only when that is seen.
            gc.collect()
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
