"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): PEFT's soft prompt, trained as an adapter of supervised fine-tuning is.

Knows no queue and no wire.
"""

from __future__ import annotations

from collections.abc import Callable

from peft import PromptTuningConfig, PromptTuningInit

from services.common.errors import InvalidArgument
from services.trainer.domain import Adapter, Event, Order
from services.trainer.recipes.base import open_base
from services.trainer.recipes.sft import fine_tune
from services.trainer.spec import PromptTuning


def train(order: Order, report: Callable[[Event], None]) -> Adapter | None:
    """Trains and publishes the soft prompt. Raises what `sft.train` does, InvalidArgument VIRTUAL_TOKENS_TOO_MANY."""
    method = order.spec.method
    assert isinstance(method, PromptTuning)  # noqa: S101  the recipe was chosen by it
    base = open_base(order)
    room = base.context - method.virtual_tokens
    if room < 2:
        message = "{count} virtual tokens leave no room in the base's context of {context}: lower {field}"
        field = "spec.prompt_tuning.virtual_tokens"
        raise InvalidArgument("VIRTUAL_TOKENS_TOO_MANY", message, count=method.virtual_tokens, context=base.context, field=field)
    prompt = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=method.virtual_tokens,
        # The paper's best of the two starts that need no labels: embeddings of tokens, of a text where one is given.
        prompt_tuning_init=PromptTuningInit.TEXT if method.initial_text else PromptTuningInit.SAMPLE_VOCAB,
        prompt_tuning_init_text=method.initial_text or None,
        tokenizer_name_or_path=str(base.folder) if method.initial_text else None,
    )
    return fine_tune(order, base, prompt, room, report)
