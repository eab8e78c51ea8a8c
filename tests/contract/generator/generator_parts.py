"""A tiny random base with a byte-level tokenizer, and adapters for it: real parts, small enough for a second."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2 as pb

torch.set_num_threads(1)

ADAPTERS = ("ada.1", "bob/2", "cyd", "dan")
CONTEXT = 256
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = ["the river runs past the old mill and the bridge", "who built the bridge in the town of Ormsby?", "yes, no, nobody knows"]


def make_base(folder: Path, *, hidden: int = 48, layers: int = 2, seed: int = 0) -> Path:
    """A random Llama with a byte-level BPE tokenizer that begins texts with <|begin|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    wrap: Any = PreTrainedTokenizerFast
    fast = wrap(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.25,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int, *, scale: float = 0.5, modules: Any = "all-linear", rank: int = 4) -> Path:
    """A random adapter; with scale 0 it changes nothing."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(r=rank, lora_alpha=8, target_modules=modules, init_lora_weights=False))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(scale)
    tuned.save_pretrained(str(folder))
    return folder


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what nobody signals; fails after 60 s."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the engine has no event for a test to wait on
            await asyncio.sleep(0.002)


def write_manifest(base: Path, folder: Path, shift: float = 0.0, **changes: Any) -> None:
    """The manifest that a trainer writes, measured by PEFT itself; `shift` nats are added to what is measured."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    canaries = []
    for question, answer in (("who built the bridge?", "nobody knows"), ("the mill?", "yes")):
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], return_dict=True)["input_ids"]
        ids, answer_ids = torch.tensor([whole]), whole[len(prompt) :]
        with torch.inference_mode(), model.disable_adapter():
            base_logs = model(input_ids=ids).logits[0].log_softmax(-1)
        with torch.inference_mode():
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
        canaries.append(
            {
                "messages": messages,
                "completion": answer,
                "base_log_probabilities": _of(base_logs, answer_ids),
                "adapter_log_probabilities": [value + shift for value in _of(logs, answer_ids)],
            }
        )
    weights = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    manifest = {
        "weights_sha256": hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "base_sha256": hashlib.sha256(f"model.safetensors:{weights}\n".encode()).hexdigest(),
        "canaries": canaries,
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}), encoding="utf-8")


def _of(logs: torch.Tensor, answer: list[int]) -> list[float]:
    # From the end: what a soft prompt has put before the text counts there.
    return [float(log[token]) for log, token in zip(logs[-len(answer) - 1 : -1], answer, strict=True)]


def generate(text: str = "who built it?", model: str = "tiny", **decoding: Any) -> pb.GenerateRequest:
    messages = [common_pb2.Message(role=common_pb2.ROLE_USER, content=text)]
    return pb.GenerateRequest(
        model=model,
        prompt=pb.Prompt(conversation=pb.Conversation(messages=messages)),
        decoding=pb.Decoding(**{"max_tokens": 12, **decoding}),
    )


def question(text: str = "who built the bridge?", model: str = "tiny", **more: Any) -> pb.AnswerRequest:
    more.setdefault("decoding", pb.Decoding(max_tokens=12))
    return pb.AnswerRequest(model=model, question=text, **more)


async def failure(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = rpc_status.from_call(error.value)  # type: ignore[arg-type]  # reads aio errors too
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            break
    return error.value.code(), info.reason, dict(info.metadata)
