"""LoRA adapters side by side on one base model (PEFT), applied row by row. Knows no requests and no proof.

PEFT builds the layers and loads the weights. Only how rows find their adapter is our own: rows of a batch
are sorted by adapter, and each adapter's layers work on one slice. (PEFT's `adapter_names` does the same by index lists and hooks set
anew at every forward pass, which costs more than a decoding step of a small model.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners import lora
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from services.generator.adapter_config import misfit, unreadable

# Settings of PEFT's LoraConfig that add more than low-rank matrices on linear layers, or copies of the base's own weights.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)


@dataclass(slots=True)
class _Spans:
    """Which rows of the batch under way belong to which adapter: (key, first row, row after the last)."""

    rows: tuple[tuple[str, int, int], ...] = ()


class SlicedLinear(lora.Linear):
    """A linear layer with adapters, each applied to its own slice of the batch."""

    spans = _Spans()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, with each adapter's product added to its rows."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for key, start, stop in self.spans.rows:
            if key in self.scaling:
                down, up = cast(nn.Linear, self.lora_A[key]), cast(nn.Linear, self.lora_B[key])
                low = down(x[start:stop])
                width = result.shape[-1]
                result[start:stop].view(-1, width).addmm_(low.view(-1, low.shape[-1]), up.weight.t(), alpha=self.scaling[key])
        return result


class LoraRack:
    """The adapters of one base model. Not safe for use by several threads at once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._tuned: PeftModel | None = None
        self._keys: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._spans = _Spans()

    @property
    def adapters(self) -> Iterable[str]:
        """Names of those that are in."""
        return self._keys.keys()

    def load(self, adapter: str, folder: Path, config: LoraConfig, weights: dict[str, Tensor]) -> None:
        """Puts in an adapter; tried on an empty copy of the model's structure first, so that a misfit never touches the model.

        Raises InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH.
        """
        _prepare(config, folder)
        self._try(config, weights, folder)
        # Names of adapters may hold dots, which names of torch modules may not.
        key = self._keys[adapter] = f"adapter{next(self._numbers)}"
        if self._tuned is None:
            self._tuned = PeftModel(self._model, config, adapter_name=key, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
        else:
            self._tuned.add_adapter(key, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
        typed = {name: weight.to(self._model.dtype) for name, weight in weights.items()}
        set_peft_model_state_dict(self._tuned, typed, adapter_name=key, low_cpu_mem_usage=True)
        for module in self._model.modules():
            if isinstance(module, SlicedLinear):
                module.spans = self._spans
        self._model.train(False).requires_grad_(False)

    def unload(self, adapter: str) -> None:
        """Takes an adapter out; nothing happens when it is not in."""
        key = self._keys.pop(adapter, None)
        if self._tuned is not None and key in self._tuned.peft_config:
            self._tuned.delete_adapter(key)

    def arrange(self, adapters: Sequence[str | None]) -> None:
        """Says which adapter each row of the next forward pass has; None is the base. Equal ones stand together."""
        spans, start = [], 0
        for adapter, group in itertools.groupby(adapters):
            stop = start + sum(1 for _ in group)
            if adapter is not None:
                spans.append((self._keys[adapter], start, stop))
            start = stop
        self._spans.rows = tuple(spans)

    def _try(self, config: LoraConfig, weights: dict[str, Tensor], folder: Path) -> None:
        reasons: list[str] = []
        make: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            empty = make(self._model.config)
        try:
            tuned = PeftModel(empty, config, adapter_name="trial", autocast_adapter_dtype=False)
            meta = {name: weight.to("meta") for name, weight in weights.items()}
            outcome: Any = set_peft_model_state_dict(tuned, meta, adapter_name="trial", low_cpu_mem_usage=True)
        except (ValueError, RuntimeError, KeyError) as error:
            # PEFT: no module of the names; torch: sizes differ. The first lines say which.
            reasons = [" ".join(str(error).split())[:500]]
        else:
            missing = [name for name in outcome.missing_keys if ".trial." in name]
            others = [
                name
                for name, module in empty.named_modules()
                if isinstance(module, lora.LoraLayer) and not isinstance(module, SlicedLinear)
            ]
            reasons += [f"{len(missing)} weights are missing ({missing[0]}, ...)"] if missing else []
            extra = outcome.unexpected_keys
            reasons += [f"{len(extra)} weights have no place ({extra[0]}, ...)"] if extra else []
            reasons += [f"it adapts modules that are not linear ({others[0]}, ...)"] if others else []
        if reasons:
            raise misfit(folder, reasons)


def _prepare(config: LoraConfig, folder: Path) -> None:
    unsupported = [name for name in _UNSUPPORTED if getattr(config, name, None)]
    if unsupported or config.bias != "none":
        raise unreadable(folder, f"this engine serves plain LoRA, without {', '.join(unsupported or ['bias'])}")
    # The weights come from the file; how they were initialised before training matters no more, and must not touch the base.
    config.init_lora_weights = True
    config.inference_mode = True
    config._register_custom_module({nn.Linear: SlicedLinear, Conv1D: SlicedLinear})
