"""What to train: methods, their settings and defaults, and the ranges that settings have. Knows no job, no wire and no training library."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from services.common.errors import InvalidArgument

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_SCHEDULES = ("linear", "cosine", "constant")
SFT_RATE, DPO_RATE, PROMPT_TUNING_RATE, FULL_RATE = 2e-4, 1e-5, 3e-2, 2e-5
"""Usual learning rates: QLoRA's; TRL's of 1e-6 for preference optimisation, times ten for LoRA as its documentation says; PEFT's; that of
Stanford Alpaca and of Llama 2 Chat (arXiv 2307.09288) for all weights."""
_PRECISIONS = ("auto", "float32", "bfloat16")


def _refuse(name: str, message: str) -> InvalidArgument:
    return InvalidArgument("SETTING_OUT_OF_RANGE", "{field} {message}", field=name, message=message)


def _check(name: str, value: float, fits: bool, range_: str) -> None:
    if not (fits and math.isfinite(value)):
        raise _refuse(name, f"must be {range_}, not {value:g}")


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685), every default filled in."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    """Empty means all linear layers."""
    rank_stabilized: bool
    dora: bool
    four_bit: bool

    @classmethod
    def given(
        cls,
        rank: int | None = None,
        alpha: float | None = None,
        dropout: float | None = None,
        target_modules: Sequence[str] = (),
        rank_stabilized: bool | None = None,
        dora: bool | None = None,
        four_bit: bool | None = None,
    ) -> Lora:
        """Settings as asked for, None for what was left open. Raises InvalidArgument SETTING_OUT_OF_RANGE."""
        rank = 16 if rank is None else rank
        _check("lora.rank", rank, 1 <= rank <= 512, "1 to 512")
        alpha = 2.0 * rank if alpha is None else alpha
        _check("lora.alpha", alpha, alpha > 0, "above 0")
        dropout = 0.0 if dropout is None else dropout
        _check("lora.dropout", dropout, 0 <= dropout < 1, "0 to below 1")
        if not all(target_modules):
            raise _refuse("lora.target_modules", "holds an empty name: leave it out or name a module")
        # Order and repetition mean nothing, so they must not make other work of the same.
        return cls(rank, alpha, dropout, tuple(sorted(set(target_modules))), bool(rank_stabilized), bool(dora), bool(four_bit))


@dataclass(frozen=True, slots=True)
class Optimization:
    """Course of the optimiser (AdamW), every default filled in. Exactly one of `epochs` and `max_steps` is set."""

    epochs: float | None
    max_steps: int | None
    learning_rate: float
    batch_size: int
    micro_batch_size: int
    max_length: int | None
    """None means the model's context."""
    warmup_ratio: float
    weight_decay: float
    schedule: str
    max_gradient_norm: float
    precision: str = "auto"
    """Of the computation: float32, bfloat16, or auto, which is bfloat16 on CUDA and float32 on a CPU."""
    gradient_checkpointing: bool | None = None
    """Computes activations again instead of keeping them; None means on CUDA only."""
    keep_best: bool = False
    """The adapter is that of the epoch with the lowest evaluation loss, and not the last."""
    patience: int | None = None
    """Ends training after so many epochs without a lower evaluation loss; None means never."""

    @classmethod
    def given(
        cls,
        epochs: float | None = None,
        max_steps: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        micro_batch_size: int | None = None,
        max_length: int | None = None,
        warmup_ratio: float | None = None,
        weight_decay: float | None = None,
        schedule: str = "",
        max_gradient_norm: float | None = None,
        precision: str = "",
        gradient_checkpointing: bool | None = None,
        keep_best: bool | None = None,
        patience: int | None = None,
        usual_rate: float = SFT_RATE,
    ) -> Optimization:
        """Settings as asked for, None for what was left open; `usual_rate` is the method's. Raises InvalidArgument SETTING_OUT_OF_RANGE."""
        if epochs is not None and max_steps is not None:
            raise _refuse("optimization.max_steps", "and epochs exclude each other: set one of them")
        if max_steps is None:
            epochs = 3.0 if epochs is None else epochs
            _check("optimization.epochs", epochs, epochs > 0, "above 0")
        else:
            _check("optimization.max_steps", max_steps, max_steps >= 1, "at least 1")
        learning_rate = usual_rate if learning_rate is None else learning_rate
        _check("optimization.learning_rate", learning_rate, learning_rate > 0, "above 0")
        batch_size = 16 if batch_size is None else batch_size
        _check("optimization.batch_size", batch_size, batch_size >= 1, "at least 1")
        micro = batch_size if micro_batch_size is None else micro_batch_size
        if micro < 1 or batch_size % micro:
            raise _refuse("optimization.micro_batch_size", f"must divide batch_size {batch_size}; {micro} does not")
        if max_length is not None:
            _check("optimization.max_length", max_length, max_length >= 2, "at least 2")
        warmup = 0.03 if warmup_ratio is None else warmup_ratio
        _check("optimization.warmup_ratio", warmup, 0 <= warmup <= 1, "0 to 1")
        decay = 0.0 if weight_decay is None else weight_decay
        _check("optimization.weight_decay", decay, decay >= 0, "at least 0")
        schedule = schedule or "linear"
        if schedule not in _SCHEDULES:
            raise _refuse("optimization.schedule", f"must be one of {', '.join(_SCHEDULES)}, not {schedule}")
        norm = 1.0 if max_gradient_norm is None else max_gradient_norm
        _check("optimization.max_gradient_norm", norm, norm > 0, "above 0")
        precision = precision or "auto"
        if precision not in _PRECISIONS:
            raise _refuse("optimization.precision", f"must be one of {', '.join(_PRECISIONS)}, not {precision}")
        if patience is not None:
            _check("optimization.patience", patience, patience >= 1, "at least 1")
        more = (precision, gradient_checkpointing, bool(keep_best), patience)
        return cls(epochs, max_steps, learning_rate, batch_size, micro, max_length, warmup, decay, schedule, norm, *more)

    @property
    def evaluates(self) -> bool:
        """Whether the course depends on evaluation data."""
        return self.keep_best or self.patience is not None


@dataclass(frozen=True, slots=True)
class SupervisedFineTuning:
    """Fine-tuning on the assistant's tokens."""

    lora: Lora
    optimization: Optimization
    kind: Literal["sft"] = "sft"


@dataclass(frozen=True, slots=True)
class FullFineTuning:
    """Fine-tuning of all weights on the assistant's tokens; what comes of it is a model of its own."""

    optimization: Optimization
    kind: Literal["full"] = "full"


@dataclass(frozen=True, slots=True)
class DirectPreferenceOptimization:
    """Rafailov et al. 2023, arXiv 2305.18290: of two answers the chosen one becomes likelier than the rejected one."""

    lora: Lora
    optimization: Optimization
    beta: float
    """Strength of the pull to the base."""
    kind: Literal["dpo"] = "dpo"

    @classmethod
    def given(cls, lora: Lora, optimization: Optimization, beta: float | None = None) -> DirectPreferenceOptimization:
        """Settings as asked for, None for what was left open. Raises InvalidArgument SETTING_OUT_OF_RANGE."""
        beta = 0.1 if beta is None else beta
        _check("beta", beta, beta > 0, "above 0")
        return cls(lora, optimization, beta)


@dataclass(frozen=True, slots=True)
class PromptTuning:
    """Lester et al. 2021, arXiv 2104.08691: a few embeddings before the prompt are learnt, and nothing else."""

    virtual_tokens: int
    initial_text: str
    """Text whose embeddings they begin as; empty for those of random tokens of the vocabulary."""
    optimization: Optimization
    kind: Literal["prompt_tuning"] = "prompt_tuning"

    @classmethod
    def given(cls, optimization: Optimization, virtual_tokens: int | None = None, initial_text: str | None = None) -> PromptTuning:
        """Settings as asked for, None for what was left open. Raises InvalidArgument SETTING_OUT_OF_RANGE."""
        tokens = 20 if virtual_tokens is None else virtual_tokens
        _check("virtual_tokens", tokens, 1 <= tokens <= 1024, "1 to 1024")
        return cls(tokens, initial_text or "", optimization)


@dataclass(frozen=True, slots=True)
class HostedFineTuning:
    """A provider's fine-tuning service; the weights stay there."""

    hyperparameters: Mapping[str, str]
    """By the provider's names, as JSON: numbers, texts, true or false. Empty for the provider's own."""
    kind: Literal["hosted"] = "hosted"

    @classmethod
    def given(cls, hyperparameters: Mapping[str, str]) -> HostedFineTuning:
        """Settings as asked for. Raises InvalidArgument SETTING_OUT_OF_RANGE."""
        return cls({name: _json_value(name, value) for name, value in sorted(hyperparameters.items())})


def _json_value(name: str, text: str) -> str:
    try:
        value = json.loads(text, parse_constant=lambda _: [])
    except ValueError:
        value = []
    if not isinstance(value, str | int | float):
        wanted = 'must be a number, true, false or a text in quotes, as JSON: 3, 0.1 or "auto"'
        raise _refuse(f"hyperparameters.{name}", f"{wanted}; not {text!a:.60}")
    # The same value is the same work, however it was written.
    return json.dumps(value)


Method = SupervisedFineTuning | DirectPreferenceOptimization | PromptTuning | FullFineTuning | HostedFineTuning


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What to train. Raises InvalidArgument when a part is out of range."""

    adapter_name: str
    base: str
    dataset_uri: str
    evaluation_uri: str
    """Empty for none."""
    seed: int
    method: Method

    def __post_init__(self) -> None:
        if not _ADAPTER_NAME.fullmatch(self.adapter_name):
            message = "spec.adapter_name must be 1 to 128 letters, digits, '.', '-' or '_' and not begin with '.', not {name!r}"
            raise InvalidArgument("ADAPTER_NAME_INVALID", message, name=self.adapter_name, field="spec.adapter_name")
        for name in ("base", "dataset_uri"):
            if not getattr(self, name):
                raise InvalidArgument("FIELD_MISSING", "set {field}", field=f"spec.{name}")
        if not self.hosted and self.course.evaluates and not self.evaluation_uri:
            message = "keep_best and patience go by the evaluation loss: set spec.evaluation_uri"
            raise InvalidArgument("FIELD_MISSING", message, field="spec.evaluation_uri")
        # The ranges that numpy's generator and OpenAI take.
        limit = 2**31 if self.hosted else 2**32
        if not 0 <= self.seed < limit:
            message = "spec.seed must be 0 to {most}, not {seed}"
            raise InvalidArgument("SETTING_OUT_OF_RANGE", message, seed=self.seed, most=limit - 1, field="spec.seed")

    @property
    def hosted(self) -> bool:
        """Whether a provider trains it, and nothing here."""
        return isinstance(self.method, HostedFineTuning)

    @property
    def course(self) -> Optimization:
        """Course of the optimiser, of what is trained here."""
        assert not isinstance(self.method, HostedFineTuning)  # noqa: S101  a provider has a course of its own
        return self.method.optimization

    def divided(self, processes: int) -> tuple[int, int]:
        """Examples at once in each of so many processes, and how often they go before a step.

        Raises InvalidArgument BATCH_NOT_DIVISIBLE.
        """
        if self.hosted:
            return 1, 1
        course = self.course
        share, rest = divmod(course.batch_size, processes)
        if rest or not share:
            message = "batch_size {batch} cannot be divided among the trainer's {processes} processes: change it to a multiple"
            field = f"spec.{self.method.kind}.optimization.batch_size"
            raise InvalidArgument("BATCH_NOT_DIVISIBLE", message, batch=course.batch_size, processes=processes, field=field)
        at_once = next(count for count in range(min(course.micro_batch_size, share), 0, -1) if share % count == 0)
        return at_once, share // at_once

    @property
    def four_bit(self) -> bool:
        """Whether the base is loaded in 4 bits."""
        return isinstance(self.method, SupervisedFineTuning | DirectPreferenceOptimization) and self.method.lora.four_bit
