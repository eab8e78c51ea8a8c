"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): TRL's DPOTrainer with a PEFT LoRA adapter; the reference is the
base itself, which is the model without its adapter. Data are tokenized beforehand, so that every count is exact.

Read `train` from top to bottom: base, data, trainer, adapter. Knows no queue and no wire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset  # type: ignore[import-untyped]  # the library ships no types
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from services.trainer import canaries, formats, preferences
from services.trainer.domain import Adapter, DatasetReport, Event, Order
from services.trainer.preferences import Pair
from services.trainer.recipes import course, data
from services.trainer.recipes.base import check_targets, length_limit, open_base
from services.trainer.recipes.outcome import Learnt, publish
from services.trainer.recipes.sft import adapter_settings
from services.trainer.spec import DirectPreferenceOptimization


def train(order: Order, report: Callable[[Event], None]) -> Adapter | None:
    """Trains and publishes the adapter; of several processes the first does, the others return None.

    Raises TunetrialError, InterruptedError when the process was told to end, or what the libraries raise; then nothing is published.
    """
    method = order.spec.method
    assert isinstance(method, DirectPreferenceOptimization)  # noqa: S101  the recipe was chosen by it
    base = open_base(order)
    check_targets(base.model, method.lora.target_modules)
    max_length = length_limit(method.optimization.max_length, base.context)

    def prepare(path: Path, field: str) -> tuple[list[Pair], DatasetReport]:
        return preferences.prepare(base.tokenizer, formats.preferences(path, field), max_length, field)

    pairs, found, evaluation = data.read(order, report, prepare)
    # The library's own switch would silence the adapter's as well. The base is the reference too: the two must not draw differently.
    disable_dropout_in_model(base.model)
    learnt = Learnt(found, canaries.choose(base.tokenizer, [pair.as_example() for pair in pairs], base.context), max_length)

    watch = course.watch(order, report)
    trainer = _Trainer(
        order=order,
        lengths=[len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs],
        model=base.model,
        args=DPOConfig(**course.arguments(order), beta=method.beta, max_length=None, disable_dropout=False),
        train_dataset=to_dataset(pairs),
        eval_dataset=None if evaluation is None else to_dataset(evaluation),
        processing_class=base.tokenizer,
        peft_config=adapter_settings(method.lora),
        callbacks=watch.callbacks,
    )
    course.run(trainer, order, watch)
    return publish(order, base, learnt, trainer.model, watch.progress)


class _Trainer(course.Course, DPOTrainer):
    """Takes pairs in order of their length, as they were tokenized here."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def to_dataset(pairs: Sequence[Pair]) -> Dataset:
    """What the trainer reads."""
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt_ids for pair in pairs],
            "chosen_ids": [pair.chosen_ids for pair in pairs],
            "rejected_ids": [pair.rejected_ids for pair in pairs],
        }
    )
