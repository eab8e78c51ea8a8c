"""The base of a job: found unchanged, and loaded with its tokenizer. Knows no method of training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from services.common.errors import FailedPrecondition, InvalidArgument
from services.trainer.domain import Order
from services.trainer.inputs import HUB_PATTERNS, text_sha256, weights_sha256
from services.trainer.spec import FullFineTuning, Optimization

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Base:
    """A base that is loaded."""

    folder: Path
    sha256: str
    tokenizer: Any
    model: Any
    context: int
    """Longest sequence in tokens."""


def open_base(order: Order) -> Base:
    """Loads what the order names. Raises FailedPrecondition when it changed since or cannot be trained."""
    torch.set_num_threads(order.threads)
    folder, sha256 = checked_base(order)
    tokenizer = load_tokenizer(folder)
    four_bit = order.spec.four_bit
    place = four_bit_place(order.four_bit_on_cpu) if four_bit else None
    dtype = precision(order.spec.course)
    model = load_model(folder, "auto" if isinstance(order.spec.method, FullFineTuning) else dtype, place, four_bit)
    return Base(folder, sha256, tokenizer, model, context_of(model))


def precision(course: Optimization) -> torch.dtype:
    """Type of the computation. Raises FailedPrecondition PRECISION_UNSUPPORTED."""
    cuda = torch.cuda.is_available()
    dtype = TYPES.get(course.precision) or (torch.bfloat16 if cuda else torch.float32)
    if dtype is torch.bfloat16 and cuda and not torch.cuda.is_bf16_supported():
        message = "this CUDA device has no bfloat16: set precision to float32"
        raise FailedPrecondition("PRECISION_UNSUPPORTED", message)
    return dtype


def checked_base(order: Order) -> tuple[Path, str]:
    """Folder and sha256 of the base, fetched if need be. Raises FailedPrecondition BASE_CHANGED."""
    inputs = order.inputs
    if inputs.base_path is None:
        assert inputs.base_hub_name is not None  # noqa: S101  a base is a folder or comes from the hub
        folder = Path(snapshot_download(inputs.base_hub_name, revision=inputs.base_revision, allow_patterns=HUB_PATTERNS))
        return folder, weights_sha256(folder)
    folder = Path(inputs.base_path)
    sha256 = weights_sha256(folder)
    if (sha256, text_sha256(folder)) != (inputs.base_sha256, inputs.base_text_sha256):
        message = "the files of base {base} changed since the job was created: create the job again"
        raise FailedPrecondition("BASE_CHANGED", message, base=order.spec.base)
    return folder, sha256


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer. Raises FailedPrecondition when it cannot hold a conversation."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    if not tokenizer.chat_template:
        message = "the base has no chat template: use an instruction-tuned base, or put a chat_template.jinja into its folder"
        raise FailedPrecondition("CHAT_TEMPLATE_MISSING", message)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise FailedPrecondition(
            "PAD_TOKEN_MISSING", "the base's tokenizer names neither pad_token nor eos_token: name one in its configuration"
        )
    return tokenizer


def load_model(
    base: Path, dtype: torch.dtype | Literal["auto"], place: dict[str, int | str] | str | None = None, four_bit: bool = False
) -> Any:
    """The base's weights, as numbers of their own type where `dtype` is auto; `place` is transformers' device map."""
    # The settings of the QLoRA paper (arXiv 2305.14314): NormalFloat 4, double quantization.
    quantization = four_bit and BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # the library leaves it untyped
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(
        str(base),
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=quantization or None,
        device_map=place,
    )


def four_bit_place(on_cpu: bool) -> dict[str, int | str]:
    """Where a base in four bits goes; `on_cpu` allows it without CUDA. Raises FailedPrecondition CUDA_NEEDED or LIBRARY_MISSING."""
    cuda = torch.cuda.is_available()
    if not cuda and not on_cpu:
        raise FailedPrecondition("CUDA_NEEDED", "four_bit needs a CUDA device, and there is none: leave four_bit unset")
    if find_spec("bitsandbytes") is None:
        raise FailedPrecondition("LIBRARY_MISSING", "four_bit needs bitsandbytes: install it where the trainer runs")
    # Each process of a job has a device of its own.
    return {"": int(os.environ.get("LOCAL_RANK", "0")) if cuda else "cpu"}


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Raises InvalidArgument TARGET_MODULES_UNKNOWN for a name that no linear layer bears; PEFT passes over it as long as another fits."""
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    unknown = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in linear)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in linear})
        message = "target modules {unknown} match nothing in the base: use some of {known}, or none for all linear layers"
        raise InvalidArgument("TARGET_MODULES_UNKNOWN", message, unknown=", ".join(unknown), known=", ".join(known))


def context_of(model: Any) -> int:
    """Longest sequence of the model in tokens. Raises FailedPrecondition CONTEXT_UNKNOWN."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise FailedPrecondition("CONTEXT_UNKNOWN", "the base's config.json does not say max_position_embeddings: add it there")
    return context


def length_limit(asked: int | None, context: int) -> int:
    """Longest example in tokens. Raises InvalidArgument MAX_LENGTH_TOO_LONG."""
    if asked is not None and asked > context:
        message = "max_length {asked} is more than the base's context of {context} tokens: lower it or leave it unset"
        raise InvalidArgument("MAX_LENGTH_TOO_LONG", message, asked=asked, context=context)
    return asked or context
