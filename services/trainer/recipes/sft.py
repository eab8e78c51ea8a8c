"""Supervised fine-tuning: TRL's SFTTrainer with an adapter of PEFT on data that are tokenized beforehand, so that every count is exact.

Read `train`, `fine_tune` and `set_up`: base, data, trainer, adapter. Knows no queue and no wire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset  # type: ignore[import-untyped]  # the library ships no types
from peft import LoraConfig, PeftConfig
from torch.nn import functional
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from services.trainer import canaries, dataset, formats
from services.trainer.dataset import Example
from services.trainer.domain import Adapter, DatasetReport, Event, Order
from services.trainer.recipes import course, data
from services.trainer.recipes.base import Base, check_targets, length_limit, open_base
from services.trainer.recipes.outcome import Learnt, publish
from services.trainer.spec import Lora, PromptTuning, SupervisedFineTuning


def train(order: Order, report: Callable[[Event], None]) -> Adapter | None:
    """Trains and publishes the adapter; of several processes the first does, the others return None.

    Raises TunetrialError, InterruptedError when the process was told to end, or what the libraries raise; then nothing is published.
    """
    method = order.spec.method
    assert isinstance(method, SupervisedFineTuning)  # noqa: S101  the recipe was chosen by it
    base = open_base(order)
    check_targets(base.model, method.lora.target_modules)
    return fine_tune(order, base, adapter_settings(method.lora), base.context, report)


def fine_tune(order: Order, base: Base, adapter: PeftConfig, context: int, report: Callable[[Event], None]) -> Adapter | None:
    """Any adapter on the assistant's tokens; `context` is the room that it leaves, in tokens."""
    made = set_up(order, base, adapter, context, report)
    course.run(made.trainer, order, made.watch)
    return publish(order, base, made.learnt, made.trainer.model, made.watch.progress)


@dataclass(frozen=True, slots=True)
class SetUp:
    """All that a training on the assistant's tokens needs."""

    trainer: AnswerTrainer
    learnt: Learnt
    watch: course.Watch


def set_up(order: Order, base: Base, adapter: PeftConfig | None, context: int, report: Callable[[Event], None]) -> SetUp:
    """Reads the data and makes the trainer; without an adapter it trains the base's own weights."""
    max_length = length_limit(order.spec.course.max_length, context)

    def prepare(path: Path, field: str) -> tuple[list[Example], DatasetReport]:
        return dataset.prepare(base.tokenizer, formats.conversations(path, field), max_length, field)

    examples, found, evaluation = data.read(order, report, prepare)
    learnt = Learnt(found, canaries.choose(base.tokenizer, examples, context), max_length)

    watch = course.watch(order, report)
    trainer = AnswerTrainer(
        order=order,
        lengths=[len(example.input_ids) for example in examples],
        model=base.model,
        args=SFTConfig(
            **course.arguments(order),
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
        ),
        train_dataset=to_dataset(examples),
        eval_dataset=None if evaluation is None else to_dataset(evaluation),
        processing_class=base.tokenizer,
        peft_config=adapter,
        callbacks=watch.callbacks,
    )
    return SetUp(trainer, learnt, watch)


class AnswerTrainer(course.Course, SFTTrainer):
    """Takes examples in order of their length; on a CPU, asks for the logits of answers only."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Mean cross entropy of the answers' tokens over the whole batch, as the library has it.

        On CUDA the library leaves out the other positions by itself. It is asked as well where a soft prompt moves positions, and where
        a mixture of experts has a loss of its own.
        """
        own = return_outputs or self.aux_loss_enabled or isinstance(self._order.spec.method, PromptTuning)
        if own or model.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        targets = inputs["labels"][:, 1:]
        answers = targets != dataset.IGNORED
        positions = answers.any(0).nonzero()[:, 0]
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        logits = model(**asked, use_cache=False, logits_to_keep=positions).logits.float().flatten(0, 1)
        loss = functional.cross_entropy(logits, targets[:, positions].flatten(), ignore_index=dataset.IGNORED, reduction="sum")
        if num_items_in_batch is None:
            return loss / answers.sum()
        # It counts the tokens of all processes, over which gradients are averaged afterwards.
        return loss * self.accelerator.num_processes / num_items_in_batch


def to_dataset(examples: Sequence[Example]) -> Dataset:
    """What the trainer reads."""
    return Dataset.from_dict({"input_ids": [example.input_ids for example in examples], "labels": [example.labels for example in examples]})


def adapter_settings(lora: Lora) -> LoraConfig:
    """LoRA as PEFT takes it."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared int, used as a number
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        use_rslora=lora.rank_stabilized,
        use_dora=lora.dora,
    )
