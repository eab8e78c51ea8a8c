"""Canaries: a few prompts with the log-probabilities of a known answer under base and adapter, by which an engine proves what it applies.

For each: `full` = tokens of the chat template over messages and answer, `prompt` = tokens over the messages with the generation prompt;
the numbers are natural-log probabilities of `full[len(prompt):]`, each given all before it, softmax in float32. Knows no recipe and no
engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.common.errors import FailedPrecondition
from services.trainer.dataset import ChatTokenizer, Example, token_ids
from services.trainer.formats import Message

COUNT = 4


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt, its answer and both as tokens."""

    messages: tuple[Message, ...]
    completion: str
    prompt_length: int
    ids: list[int]


def choose(tokenizer: ChatTokenizer, examples: Sequence[Example], context: int) -> list[Canary]:
    """Up to COUNT canaries out of the shorter half of the examples, the same for the same data whatever its order.

    Raises FailedPrecondition CHAT_TEMPLATE_NOT_A_PREFIX when the template gives no prompt that the conversation begins with.
    """
    whole = [example for example in examples if not example.truncated and len(example.conversation.messages) > 1]
    whole.sort(key=lambda example: len(example.input_ids))
    shorter = whole[: max(COUNT, len(whole) // 2)]
    rows = {_hash(example.conversation.messages): example.conversation.messages for example in shorter}
    if rows:
        return [_canary(tokenizer, rows[key]) for key in sorted(rows)[:COUNT]]
    longest = examples[0].conversation.messages
    cut = (_canary(tokenizer, _shortened(longest, characters)) for characters in (200, 50, 10, 1))
    return [next(canary for canary in cut if len(canary.ids) <= context)]


def _hash(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).hexdigest()


def _shortened(messages: Sequence[Message], characters: int) -> tuple[Message, ...]:
    user = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
    return {"role": "user", "content": user[-characters:]}, {"role": "assistant", "content": messages[-1]["content"][:characters]}


def _canary(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> Canary:
    prompt = token_ids(tokenizer, messages[:-1], generation_prompt=True)
    ids = token_ids(tokenizer, messages)
    if not prompt or ids[: len(prompt)] != prompt or len(ids) == len(prompt):
        message = (
            "the base's chat template does not begin a conversation with the prompt that it generates from, so no engine could prove this "
            "adapter: use a chat template whose generation prompt is how an assistant's turn begins"
        )
        raise FailedPrecondition("CHAT_TEMPLATE_NOT_A_PREFIX", message)
    return Canary(tuple(messages[:-1]), messages[-1]["content"], len(prompt), ids)


def log_probabilities(model: torch.nn.Module, canary: Canary) -> list[float]:
    """Natural-log probability of each token of the answer, teacher-forced. The model must be in evaluation mode."""
    device = next(model.parameters()).device
    ids = torch.tensor([canary.ids], device=device)
    with torch.inference_mode():
        # Counted from the end: a soft prompt comes before.
        logits = model(input_ids=ids).logits[0, canary.prompt_length - len(canary.ids) - 1 : -1]
    targets = ids[0, canary.prompt_length :]
    return torch.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None])[:, 0].tolist()


def measure(model: Any, canaries: Sequence[Canary], before: Sequence[list[float]] | None = None) -> list[dict[str, Any]]:
    """The canaries of the manifest. `model`, in evaluation mode, is a PEFT model, or one of which `before` holds what the base gave."""
    measured = []
    for number, canary in enumerate(canaries):
        if before is None:
            with model.disable_adapter():
                base = log_probabilities(model, canary)
        else:
            base = before[number]
        measured.append(
            {
                "messages": [dict(message) for message in canary.messages],
                "completion": canary.completion,
                "base_log_probabilities": base,
                "adapter_log_probabilities": log_probabilities(model, canary),
            }
        )
    return measured
