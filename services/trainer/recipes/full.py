"""Full fine-tuning: all weights of the base, learnt on the assistant's tokens as an adapter is. What comes of it is a model of its own.

The optimiser changes float32 weights whatever the base's type, because steps of a usual rate are smaller than what bfloat16 tells apart;
the computation is in the course's precision, and what is published is of the base's own type. Knows no queue and no wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig

from services.common.errors import FailedPrecondition
from services.trainer import canaries
from services.trainer.domain import Adapter, Event, Order
from services.trainer.recipes import course
from services.trainer.recipes.base import open_base
from services.trainer.recipes.outcome import publish_model
from services.trainer.recipes.sft import set_up
from services.trainer.spec import FullFineTuning


def train(order: Order, report: Callable[[Event], None]) -> Adapter | None:
    """Trains and publishes the model. Raises what `sft.train` does, FailedPrecondition BASE_QUANTIZED."""
    assert isinstance(order.spec.method, FullFineTuning)  # noqa: S101  the recipe was chosen by it
    base = open_base(order)
    if getattr(base.model.config, "quantization_config", None) is not None:
        message = "the weights of base {base} are quantized, and cannot all be trained: give the base as it was before, or use method sft"
        raise FailedPrecondition("BASE_QUANTIZED", message, base=order.spec.base)
    # The base's own is published as it is; of what the library reads there, it refuses to save some.
    base.model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # the library leaves it untyped
    made = set_up(order, base, None, base.context, report)
    model, own_type = made.trainer.model.eval(), base.model.dtype
    # The base is no more once its weights are trained.
    before = [canaries.log_probabilities(model, canary) for canary in made.learnt.canaries]
    _change_type(model, torch.float32)
    course.run(made.trainer, order, made.watch)
    # Without the library's cast of the computation: the proof is of what is published.
    trained = made.trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    _change_type(trained, own_type)
    return publish_model(order, base, made.learnt, trained, before, made.watch.progress)


def _change_type(model: Any, dtype: torch.dtype) -> None:
    # Weights alone: buffers, such as those of rotary positions, have a type that no file says.
    for weights in model.parameters():
        weights.data = weights.data.to(dtype)
