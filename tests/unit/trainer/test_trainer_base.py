"""How a base is loaded: precision and quantisation, with CUDA played where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.common.errors import FailedPrecondition
from services.trainer.recipes import base
from services.trainer.spec import Optimization


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is asked of transformers, on a machine that says it has CUDA."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(base, "find_spec", lambda _: SimpleNamespace())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **settings: asked.update(settings))
    return asked


def test_four_bits_are_those_of_the_qlora_paper(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    base.load_model(Path("base"), torch.bfloat16, base.four_bit_place(on_cpu=False), four_bit=True)
    quantization = loaded["quantization_config"]
    assert (quantization.load_in_4bit, quantization.bnb_4bit_quant_type, quantization.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert quantization.bnb_4bit_compute_dtype is torch.bfloat16
    assert loaded["device_map"] == {"": 1}
    assert (loaded["use_safetensors"], loaded["trust_remote_code"]) == (True, False)
    base.load_model(Path("base"), torch.bfloat16)
    assert (loaded["quantization_config"], loaded["device_map"]) == (None, None)


def test_four_bits_without_their_library_say_what_to_install(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda _: None)
    with pytest.raises(FailedPrecondition, match="install it where the trainer runs") as refused:
        base.four_bit_place(on_cpu=False)
    assert (refused.value.reason, loaded) == ("LIBRARY_MISSING", {})


@pytest.mark.parametrize(
    ("asked", "cuda", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("float32", True, torch.float32),
    ],
)
def test_precision_is_what_was_asked_for_or_fits_the_device(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: str, cuda: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert base.precision(Optimization.given(precision=asked)) is expected


def test_a_device_without_bfloat16_says_what_to_set(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(FailedPrecondition, match="set precision to float32"):
        base.precision(Optimization.given())
    assert base.precision(Optimization.given(precision="float32")) is torch.float32
