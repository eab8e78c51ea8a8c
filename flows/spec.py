"""What a user writes: the keys of a spec, their meaning, range and default. Knows no file, no data and no service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from flows.data_spec import DataSpec, Name, Part, RetrievalSpec, beside, is_folder
from flows.records import Contestant
from flows.training_spec import TrainingSpec


class PriceSpec(Part):
    """What a provider asks for tokens."""

    input_usd: float = Field(ge=0, description="USD a million prompt tokens.")
    output_usd: float = Field(ge=0, description="USD a million tokens of answers.")
    cached_input_usd: float | None = Field(None, ge=0, description="USD a million prompt tokens that the provider had cached.")


class ModelSpec(Part):
    """A base model by its weights, or a model of a provider by its name there."""

    base: str | None = Field(None, min_length=1, description="Folder with safetensors weights (starts with . or /) or hub name.")
    engine: Literal["openai"] | None = Field(None, description="A model that is asked by the OpenAI protocol; its adapters are hosted.")
    model: str | None = Field(None, min_length=1, description="engine openai: name of the model at the provider.")
    url: str = Field("https://api.openai.com/v1", pattern=r"^https?://[^\s/@]+(/\S*)?$", description="engine openai: address of the API.")
    api_key_variable: str = Field("OPENAI_API_KEY", description="engine openai: environment variable with the key; empty for none.")
    price: PriceSpec | None = Field(None, description="engine openai: prices; without them costs are unknown.")

    @model_validator(mode="after")
    def _one_of(self) -> ModelSpec:
        if (self.base is None) == (self.engine is None):
            raise ValueError("give either base (weights) or engine: openai with model")
        if self.engine is not None and self.model is None:
            raise ValueError("engine: openai needs model, its name at the provider")
        others = sorted(self.model_fields_set & {"model", "url", "api_key_variable", "price"})
        if self.base is not None and others:
            raise ValueError(f"{', '.join(others)} goes with engine: openai; a base is served by the generator's own settings")
        return self


class ArmSpec(Part):
    """What competes: a base or a family of adapters, with or without retrieval."""

    model: str | None = Field(None, description="Name of a base under `models`; instead of `adapter`.")
    adapter: str | None = Field(None, description="Name of a family under `training`; one arm for each size.")
    rag: bool = Field(True, description="Show the retrieved passages.")
    shots: int = Field(0, ge=0, le=64, description="Worked examples before the question, drawn once from the training pool.")

    @model_validator(mode="after")
    def _one_of(self) -> ArmSpec:
        if (self.model is None) == (self.adapter is None):
            raise ValueError("give either model or adapter")
        return self


class PromptSpec(Part):
    """How a question and its passages become a prompt; the same for training and asking."""

    template: str = Field("plain/v1", description="Name of a template that ships, or a Jinja file (ends in .jinja).")
    system: str | None = Field(None, description="System turn, instead of the template's own.")
    abstentions: tuple[str, ...] = Field((), description="Further texts that mean `the passages do not say`.")
    overflow: Literal["error", "cut"] = Field(
        "cut", description="When a prompt is too long: an error, or leave out passages from the last on."
    )


class DecodingSpec(Part):
    """How answers are sampled."""

    max_tokens: int = Field(64, ge=1, le=8192, description="Longest answer in tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus.")
    samples: int = Field(1, ge=1, le=100, description="Answers to each question; more than 1 needs a temperature.")
    seed: int = Field(0, ge=0, description="Seed of the first sample; the others count up.")
    stop: tuple[str, ...] = Field((), max_length=8, description="Texts that end an answer.")

    @model_validator(mode="after")
    def _sampled(self) -> DecodingSpec:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 need a temperature above 0: greedy answers are all the same")
        return self


class JudgeSpec(Part):
    """What scores the answers."""

    rubric: tuple[Literal["accuracy", "completeness"], ...] = Field(("accuracy", "completeness"), min_length=1, description="Criteria.")
    engine: Literal["reference", "openai"] = Field("reference", description="Reference metrics without a language model, or G-Eval.")
    model: str = Field("", description="Judge model as its endpoint names it; empty for the judge service's default.")
    mode: Literal["samples", "token_probabilities"] = Field("samples", description="How a score is made from replies.")
    runs: int | None = Field(None, ge=1, le=100, description="Runs an answer; default 1 for reference and token_probabilities, else 10.")
    temperature: float | None = Field(None, ge=0, le=2, description="Temperature of the runs; default 1 in mode samples.")
    seed: int | None = Field(None, description="Seed of the first run where the endpoint takes one.")
    budget_usd: float | None = Field(None, gt=0, description="Judging stops before it costs more; what is done is kept.")

    @model_validator(mode="after")
    def _one_run(self) -> JudgeSpec:
        if self.engine == "reference" and (self.runs or 1) > 1:
            raise ValueError("the reference judge is deterministic: runs above 1 would repeat the same score")
        return self


class PrimarySpec(Part):
    """The one contrast that the verdict is about, named beforehand."""

    arm: str = Field(description="Name of an arm.")
    size: int | None = Field(None, description="Training size, where the arm has several.")
    criterion: str = Field("accuracy", description="One of the rubric's criteria.")


class AnalysisSpec(Part):
    """What is compared, and when a difference counts."""

    control: str = Field(description="Arm that the others are compared with.")
    primary: PrimarySpec = Field(description="The contrast that the verdict is about.")
    margin: float = Field(0.1, ge=0, description="Largest loss that still counts as not worse, in points of the scale.")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Error rate; intervals are 1 - alpha.")
    bootstrap: int = Field(10_000, ge=1000, description="Resamples of clusters.")
    seed: int = Field(0, description="Seed of the bootstrap.")


class Spec(Part):
    """An experiment."""

    name: Name = Field(description="Name of the experiment.")
    data: DataSpec = Field(description="Questions and documents.")
    retrieval: RetrievalSpec = Field(RetrievalSpec(), description="How passages are found.")
    models: dict[Name, ModelSpec] = Field(min_length=1, description="Base models by name.")
    training: dict[Name, TrainingSpec] = Field({}, description="Families of adapters by name.")
    prompt: PromptSpec = Field(PromptSpec(), description="How a question and its passages become a prompt.")
    decoding: DecodingSpec = Field(DecodingSpec(), description="How answers are sampled.")
    arms: dict[Name, ArmSpec] = Field(min_length=2, description="What competes, by name.")
    judge: JudgeSpec = Field(JudgeSpec(), description="What scores the answers.")
    analysis: AnalysisSpec = Field(description="What is compared.")
    promote: Name | None = Field(
        None, description="Alias of the generator, such as production, that stands for the primary arm once the gate is passed."
    )

    def contestants(self) -> tuple[Contestant, ...]:
        """Every arm, with one entry for each training size and seed."""
        found = []
        for family, arm in self.arms.items():
            if arm.adapter is None:
                found.append(Contestant(arm=family, family=family, model=arm.model or "", rag=arm.rag, shots=arm.shots))
                continue
            training = self.training[arm.adapter]
            found.extend(
                Contestant(
                    arm=family if len(training.sizes) == 1 else f"{family}-{size}",
                    family=family,
                    model=training.model,
                    adapter=arm.adapter,
                    size=size,
                    seed=seed,
                    rag=arm.rag,
                    shots=arm.shots,
                )
                for size in training.sizes
                for seed in training.seeds
            )
        return tuple(found)

    def quoting(self) -> frozenset[str]:
        """Contestants that were trained to quote before they answer: their answers are what follows the quotation."""
        families = {name for name, training in self.training.items() if training.raft is not None and training.raft.quote}
        return frozenset(contestant.id for contestant in self.contestants() if contestant.adapter in families)

    def primary_arm(self) -> str:
        """Name of the primary arm as the report has it: `raft-1000`."""
        primary = self.analysis.primary
        arm = self.arms[primary.arm]
        if arm.adapter is None or len(self.training[arm.adapter].sizes) == 1:
            return primary.arm
        return f"{primary.arm}-{primary.size}"


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A spec and where it came from."""

    spec: Spec
    path: Path

    def resolve(self, path: Path) -> Path:
        """A path of the spec, taken relative to the spec's folder."""
        return beside(self.path, path)

    @property
    def encoder(self) -> str:
        """The encoder: an absolute folder, a hub name, or "" for the one that ships."""
        encoder = self.spec.retrieval.encoder
        return str(self.resolve(Path(encoder))) if is_folder(encoder) else encoder

    def base(self, name: str) -> str:
        """Base of a model: an absolute folder, or a hub name. Only for models with weights."""
        base = self.spec.models[name].base
        assert base is not None  # noqa: S101  checked by whoever asks
        return str(self.resolve(Path(base))) if is_folder(base) else base

    @property
    def bases(self) -> dict[str, str]:
        """Bases of all models with weights, by the models' names."""
        return {name: self.base(name) for name, model in self.spec.models.items() if model.base is not None}
