"""What a user writes of training: the keys of a family of adapters. Knows no file, no data and no service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from flows.data_spec import Part
from flows.records import KnowledgeClass
from flows.search_spec import SearchSpec, Value


class RaftSpec(Part):
    """RAFT (arXiv 2403.10131): the gold passage with a probability, among distractors."""

    gold_probability: float = Field(0.8, ge=0, le=1, description="Share of examples that show the gold passage.")
    distractors: int = Field(3, ge=0, le=50, description="Other passages shown.")
    hard: bool = Field(True, description="Distractors are what retrieval finds; otherwise random passages.")
    without_gold: Literal["abstain", "answer"] = Field("abstain", description="What to say when the gold passage is not shown.")
    quote: bool = Field(
        False, description="Answers quote a sentence of the gold passage first; what follows `Answer:` is judged. Allow more max_tokens."
    )


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


class PreferencesSpec(Part):
    """Pairs of a better and a worse answer: of a file, or made from the judged answers of an earlier trial."""

    file: Path | None = Field(None, description="JSON lines with prompt, chosen and rejected; instead of `run`.")
    run: Path | None = Field(None, description="Folder of a finished run (runs/<name>-<key>); instead of `file`.")
    arms: tuple[str, ...] = Field((), description="run: arms whose answers are taken, as the report or the spec names them; default all.")
    criterion: str = Field("accuracy", description="run: the criterion whose score decides.")
    min_gap: float = Field(1.0, gt=0, description="run: least difference of the two scores, in points of the scale.")
    pairs_per_item: int = Field(1, ge=1, le=100, description="run: at most so many pairs of one question, those furthest apart first.")

    @model_validator(mode="after")
    def _one_of(self) -> PreferencesSpec:
        if (self.file is None) == (self.run is None):
            raise ValueError("give either file or run")
        if self.file is not None and (of_run := sorted(self.model_fields_set - {"file"})):
            raise ValueError(f"{', '.join(of_run)} goes with run; with a file leave it out")
        return self


class KnowledgeSpec(Part):
    """What the base knows of each training question, told by asking it from memory with worked examples (SliCK, arXiv 2405.05904)."""

    exemplar_sets: int = Field(4, ge=1, le=32, description="Sets of worked examples; the paper has 10.")
    shots: int = Field(4, ge=1, le=32, description="Worked examples a set, drawn from the training pool.")
    samples: int = Field(8, ge=1, le=100, description="Sampled answers a set, where no greedy answer is right; the paper has 16.")
    temperature: float = Field(0.5, gt=0, le=2, description="Temperature of the sampled answers.")
    max_tokens: int = Field(32, ge=1, le=1024, description="Longest answer in tokens.")
    keep: tuple[KnowledgeClass, ...] = Field(
        ("highly_known", "maybe_known", "weakly_known", "unknown"), min_length=1, description="Classes to train on; sizes count these only."
    )
    evaluate_on: tuple[KnowledgeClass, ...] | None = Field(
        None, min_length=1, description="Classes whose loss `keep_best` and `patience` go by; default those of `keep`."
    )

    @model_validator(mode="after")
    def _sensible(self) -> KnowledgeSpec:
        for name, classes in (("keep", self.keep), ("evaluate_on", self.measured)):
            if twice := sorted({one for one in classes if classes.count(one) > 1}):
                raise ValueError(f"{name} names {', '.join(twice)} twice")
        if beyond := [one for one in self.measured if one not in self.keep]:
            raise ValueError(f"evaluate_on names {', '.join(beyond)}, which keep leaves out: none would be there to evaluate on")
        return self

    @property
    def filters(self) -> bool:
        """Whether some classes are not trained on."""
        return len(self.keep) < len(get_args(KnowledgeClass))

    @property
    def measured(self) -> tuple[KnowledgeClass, ...]:
        """Classes to evaluate on."""
        return self.keep if self.evaluate_on is None else self.evaluate_on


def _named_context(value: Any) -> Any:
    return {"raft": {}} if value == "raft" else value


_Context = Annotated[
    Annotated[Literal["none", "gold", "retrieved"], Tag("context-name")] | Annotated[_RaftContext, Tag("context-settings")],
    Discriminator(lambda value: "context-settings" if isinstance(value, dict | _RaftContext) else "context-name"),
    BeforeValidator(_named_context),
]


_OF_SOFT_PROMPTS = {"virtual_tokens", "initial_text"}
_OF_PREFERENCES = {"preferences", "beta"}
_OF_HOSTED = {"model", "method", "context", "sizes", "seeds", "evaluation", "hyperparameters", "grid"}
"""All that can be said of what a provider trains; the rest is the provider's own."""
OF_LORA = ("rank", "alpha", "dropout", "rank_stabilized", "dora")
_SEARCHABLE = ("learning_rate", "epochs", "max_steps", "batch_size", "warmup_ratio", "weight_decay", "schedule")
_SEARCHABLE_OF = {"sft": OF_LORA, "full": (), "dpo": OF_LORA, "prompt_tuning": ("virtual_tokens",)}
_INCOMPARABLE = ("beta", "max_length")
"""Settings that change what the evaluation loss measures."""


class TrainingSpec(Part):
    """A family of adapters: one for each size and seed."""

    model: str = Field(description="Name of a base under `models`.")
    method: Literal["sft", "full", "dpo", "prompt_tuning", "hosted"] = Field(
        "sft",
        description="Supervised fine-tuning of a LoRA adapter, or of all weights (full), direct preference optimisation of a LoRA adapter "
        "(arXiv 2305.18290), prompt tuning (arXiv 2104.08691): a soft prompt and nothing else, or hosted: the fine-tuning service of the "
        "model's provider.",
    )
    context: _Context = Field(
        "none", description="What a training example shows beside the question: none, gold, retrieved, or raft with its settings."
    )
    preferences: PreferencesSpec | None = Field(None, description="method dpo: the pairs to learn from.")
    beta: float | None = Field(None, gt=0, description="method dpo: strength of the pull to the base; default 0.1.")
    sizes: tuple[int, ...] = Field(min_length=1, description="Training questions, for dpo pairs; smaller sets are part of larger ones.")
    seeds: tuple[int, ...] = Field((1,), min_length=1, description="Training seeds.")
    lora: LoraSpec = Field(LoraSpec(), description="methods sft and dpo: the adapter.")
    virtual_tokens: int = Field(20, ge=1, le=1024, description="method prompt_tuning: length of the soft prompt.")
    hyperparameters: dict[str, bool | int | float | str] = Field(
        {}, description="method hosted: by the provider's names, such as n_epochs; empty for the provider's own."
    )
    initial_text: str = Field("", description="method prompt_tuning: text that it begins as; empty for random tokens.")
    evaluation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training questions, whole clusters, that are kept from training to evaluate on each epoch.",
    )
    keep_best: bool = Field(False, description="Take the epoch with the lowest evaluation loss, not the last; needs `evaluation`.")
    patience: int | None = Field(None, ge=1, description="End after so many epochs without a lower evaluation loss.")
    knowledge: KnowledgeSpec | None = Field(None, description="Ask the base what it knows of the training questions, and choose by it.")
    epochs: float | None = Field(None, gt=0, description="Passes over the data; default 3.")
    max_steps: int | None = Field(None, ge=1, description="Steps instead of epochs.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate; default 2e-4, for full 2e-5, for dpo 1e-5, for prompt tuning 3e-2."
    )
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
    grid: dict[str, tuple[Value, ...]] | None = Field(
        None, description="Settings by name, each with a list of values: stands for a family of each combination, such as lora-rank8."
    )
    search: SearchSpec | None = Field(None, description="Look for the best of these settings first, by the evaluation loss.")

    @model_validator(mode="after")
    def _sensible(self) -> TrainingSpec:
        other = {
            "sft": _OF_SOFT_PROMPTS | _OF_PREFERENCES,
            "full": {"lora"} | _OF_SOFT_PROMPTS | _OF_PREFERENCES,
            "dpo": _OF_SOFT_PROMPTS | {"context", "knowledge"},
            "prompt_tuning": {"lora"} | _OF_PREFERENCES,
            "hosted": set(TrainingSpec.model_fields) - _OF_HOSTED,
        }[self.method] | (set() if self.method == "hosted" else {"hyperparameters"})
        if wrong := sorted(other & self.model_fields_set):
            raise ValueError(f"{', '.join(wrong)} does not go with method {self.method}")
        if self.method == "dpo" and self.preferences is None:
            raise ValueError("method dpo learns from pairs of answers: give preferences, with file or run")
        if not self.evaluation and (self.keep_best or self.patience is not None):
            raise ValueError("keep_best and patience go by the evaluation loss: set evaluation, the share of questions to evaluate on")
        if not self.evaluation and self.knowledge is not None and self.knowledge.evaluate_on is not None:
            raise ValueError("knowledge.evaluate_on says which questions to evaluate on: set evaluation, the share that is kept for it")
        if min(self.sizes) < 1 or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes must be different positive numbers, not {list(self.sizes)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, not {list(self.seeds)}")
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give epochs or max_steps, not both")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
        if self.search is not None:
            self._check_search(self.search)
        return self

    def _check_search(self, search: SearchSpec) -> None:
        if not self.evaluation:
            raise ValueError("search goes by the evaluation loss: set evaluation, the share of questions to evaluate on")
        known = [*_SEARCHABLE, *_SEARCHABLE_OF.get(self.method, ())]
        for name in search.parameters:
            if name in _INCOMPARABLE:
                raise ValueError(
                    f"search.parameters.{name}: evaluation losses cannot be compared across values of it; give families of their own"
                )
            if name not in known:
                raise ValueError(f"search.parameters.{name}: is not searched with method {self.method}; known are {', '.join(known)}")
        for where, settings in search.probes():
            try:
                self.with_settings(settings)
            except ValidationError as error:
                said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
                shown = ", ".join(f"{name} {value}" for name, value in settings.items())
                raise ValueError(f"search.{where}: {shown}: {said}") from None

    def with_settings(self, settings: Mapping[str, Any]) -> TrainingSpec:
        """The same with these settings, by the names of a search. Raises pydantic's ValidationError where they are not allowed."""
        given = self.model_dump(exclude_unset=True, exclude={"search"})
        of_lora = {name: value for name, value in settings.items() if name in OF_LORA}
        if of_lora:
            given["lora"] = given.get("lora", {}) | of_lora
        return TrainingSpec.model_validate(given | {name: value for name, value in settings.items() if name not in of_lora})

    @property
    def raft(self) -> RaftSpec | None:
        """Settings of the RAFT context; None for the others."""
        return self.context.raft if isinstance(self.context, _RaftContext) else None

    @property
    def context_name(self) -> str:
        """none, gold, retrieved or raft."""
        return self.context if isinstance(self.context, str) else "raft"

    def recipe(self) -> dict[str, Any]:
        """What decides the weights beside base, rows and seed, for the addresses of adapters."""
        if self.method == "hosted":
            return self.model_dump(mode="json", include={"method", "hyperparameters"})
        data = {"hyperparameters", "model", "context", "sizes", "seeds", "preferences", "knowledge", "grid", "search"}
        return self.model_dump(mode="json", exclude=data | ({"beta"} if self.method != "dpo" else set()))
