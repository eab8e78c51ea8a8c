"""What a user writes of training: the keys of a family of adapters. Knows no file, no data and no service."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from flows.data_spec import Part


class RaftSpec(Part):
    """RAFT (arXiv 2403.10131): the gold passage with a probability, among distractors."""

    gold_probability: float = Field(0.8, ge=0, le=1, description="Share of examples that show the gold passage.")
    distractors: int = Field(3, ge=0, le=50, description="Other passages shown.")
    hard: bool = Field(True, description="Distractors are what retrieval finds; otherwise random passages.")
    without_gold: Literal["abstain", "answer"] = Field("abstain", description="What to say when the gold passage is not shown.")


class _RaftContext(Part):
    raft: RaftSpec


class LoraSpec(Part):
    """Low-rank adapter."""

    rank: int = Field(16, ge=1, le=512, description="Rank.")
    alpha: float | None = Field(None, gt=0, description="Scale is alpha / rank; default twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: tuple[str, ...] = Field((), description="Modules to adapt; empty for all linear layers.")
    rank_stabilized: bool = Field(False, description="Scale by alpha / sqrt(rank).")
    dora: bool = Field(False, description="Weight decomposition.")
    four_bit: bool = Field(False, description="Load the base in 4 bits (QLoRA); needs CUDA.")


def _named_context(value: Any) -> Any:
    return {"raft": {}} if value == "raft" else value


_Context = Annotated[
    Annotated[Literal["none", "gold", "retrieved"], Tag("context-name")] | Annotated[_RaftContext, Tag("context-settings")],
    Discriminator(lambda value: "context-settings" if isinstance(value, dict | _RaftContext) else "context-name"),
    BeforeValidator(_named_context),
]


class TrainingSpec(Part):
    """A family of adapters: one for each size and seed."""

    model: str = Field(description="Name of a base under `models`.")
    method: Literal["sft", "prompt_tuning"] = Field(
        "sft", description="Supervised fine-tuning of a LoRA adapter, or prompt tuning (arXiv 2104.08691): a soft prompt and nothing else."
    )
    context: _Context = Field(
        "none", description="What a training example shows beside the question: none, gold, retrieved, or raft with its settings."
    )
    sizes: tuple[int, ...] = Field(min_length=1, description="Training questions; smaller sets are part of larger ones.")
    seeds: tuple[int, ...] = Field((1,), min_length=1, description="Training seeds.")
    lora: LoraSpec = Field(LoraSpec(), description="method sft: the adapter.")
    virtual_tokens: int = Field(20, ge=1, le=1024, description="method prompt_tuning: length of the soft prompt.")
    initial_text: str = Field("", description="method prompt_tuning: text that it begins as; empty for random tokens.")
    evaluation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training questions, whole clusters, that are kept from training to evaluate on each epoch.",
    )
    keep_best: bool = Field(False, description="Take the epoch with the lowest evaluation loss, not the last; needs `evaluation`.")
    patience: int | None = Field(None, ge=1, description="End after so many epochs without a lower evaluation loss.")
    epochs: float | None = Field(None, gt=0, description="Passes over the data; default 3.")
    max_steps: int | None = Field(None, ge=1, description="Steps instead of epochs.")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; default 2e-4, for prompt tuning 3e-2.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    micro_batch_size: int | None = Field(None, ge=1, description="Examples at once; must divide batch_size.")
    max_length: int | None = Field(None, ge=8, description="Longest example in tokens; default the model's context.")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of steps over which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Course of the learning rate.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the computation; auto is bfloat16 on CUDA and float32 on a CPU."
    )
    gradient_checkpointing: bool | None = Field(None, description="Less memory, a fifth slower; default on CUDA only.")

    @model_validator(mode="after")
    def _sensible(self) -> TrainingSpec:
        other = {"sft": {"virtual_tokens", "initial_text"}, "prompt_tuning": {"lora"}}[self.method]
        if wrong := sorted(other & self.model_fields_set):
            raise ValueError(f"{', '.join(wrong)} does not go with method {self.method}")
        if not self.evaluation and (self.keep_best or self.patience is not None):
            raise ValueError("keep_best and patience go by the evaluation loss: set evaluation, the share of questions to evaluate on")
        if min(self.sizes) < 1 or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes must be different positive numbers, not {list(self.sizes)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, not {list(self.seeds)}")
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give epochs or max_steps, not both")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
        return self

    @property
    def raft(self) -> RaftSpec | None:
        """Settings of the RAFT context; None for the others."""
        return self.context.raft if isinstance(self.context, _RaftContext) else None

    @property
    def context_name(self) -> str:
        """none, gold, retrieved or raft."""
        return self.context if isinstance(self.context, str) else "raft"
