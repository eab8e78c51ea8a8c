"""Rubrics, cases, runs and what is done with them. Knows neither how a judge reads an answer nor how a request came in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.judge.memory import Memory

MAX_RUNS = 100
FEWEST_LABELS = 10


class EngineName(StrEnum):
    """What reads the answers."""

    REFERENCE = "reference"
    OPENAI = "openai"


class Mode(StrEnum):
    """How a score is made from a language model's reply."""

    SAMPLES = "samples"
    TOKEN_PROBABILITIES = "token_probabilities"  # noqa: S105  the name of a mode, no secret


class Missing(StrEnum):
    """Why a run gave no score."""

    UNPARSED = "unparsed"
    REFUSED = "refused"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, milliseconds and US dollars; `cost_usd` is None when no price is known, 0 when it was free."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_ms: float = 0.0
    cost_usd: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, 0 or more."""

    input_per_million: float
    output_per_million: float


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion that ships. `needs_references` says that it means nothing without them."""

    name: str
    description: str
    needs_references: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """What a caller wants frozen; None and "" stand for what the engine then fills in."""

    criterion: str
    description: str = ""
    steps: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None
    engine: EngineName | None = None
    model: str = ""
    mode: Mode | None = None
    temperature: float | None = None
    run_count: int | None = None


@dataclass(frozen=True, slots=True)
class Rubric:
    """A criterion with frozen evaluation steps (G-Eval, Liu et al. 2023, arXiv 2303.16634, section 2). Scores lie in [low, high]."""

    criterion: str
    description: str
    steps: tuple[str, ...]
    low: int
    high: int
    engine: EngineName
    model: str
    mode: Mode | None
    """None for the reference engine."""
    temperature: float | None
    run_count: int
    create_time: datetime = field(compare=False)

    def content(self) -> dict[str, object]:
        """All but the time, as JSON holds it."""
        return {
            "criterion": self.criterion,
            "description": self.description,
            "steps": list(self.steps),
            "low": self.low,
            "high": self.high,
            "engine": str(self.engine),
            "model": self.model,
            "mode": None if self.mode is None else str(self.mode),
            "temperature": self.temperature,
            "run_count": self.run_count,
        }

    @property
    def hash(self) -> str:
        """sha256 over the canonical JSON (sorted keys, no spaces, UTF-8) of the content, hexadecimal."""
        text = json.dumps(self.content(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to be scored. References that are blank have been left out."""

    question: str
    answer: str
    references: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a judge. `score` is None exactly when `missing` says why."""

    score: float | None
    reply: str = ""
    missing: Missing | None = None
    usage: Usage = field(default_factory=Usage)
    off_scale_probability: float | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """All runs on one case, in order. `latency_ms` of the usage is the time from call to answer; runs overlap in it."""

    runs: tuple[Run, ...]
    usage: Usage
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer scored by judge and people. Pairs of one cluster are resampled together; "" stands alone."""

    judge: float
    human: float
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well judge and people agree."""

    spearman: Estimate
    kendall: Estimate
    weighted_kappa: Estimate
    bias: Estimate


class Engine(Protocol):
    """Port to what reads the answers."""

    def freeze(self, draft: Draft) -> Rubric:
        """The draft with defaults filled in. Raises InvalidArgument or FailedPrecondition for what this engine cannot do."""

    async def write_steps(self, rubric: Rubric) -> tuple[tuple[str, ...], Usage]:
        """Evaluation steps for a rubric without; () from an engine that uses none. Raises FailedPrecondition STEPS_UNPARSED."""

    async def judge(self, rubric: Rubric, case: Case, run_count: int, seed: int | None) -> Judgement:
        """`run_count` runs. Raises Unavailable, ResourceExhausted, FailedPrecondition; a run without a score is no error."""


class RubricStore(Protocol):
    """Port to where rubrics outlive the process."""

    def read(self, rubric_hash: str) -> Rubric | None:
        """The rubric of this hash."""

    def read_written_for(self, request_hash: str) -> Rubric | None:
        """The rubric whose steps were written for this request."""

    def write(self, rubric: Rubric, request_hash: str) -> Rubric:
        """Keeps a rubric; returns the one that is kept, whose time is earlier if it was there before."""


class MeasureAgreement(Protocol):
    """Port to the statistics."""

    def __call__(self, pairs: Sequence[Pair]) -> Agreement:
        """Agreement of the scores of at least ten pairs."""


class Judge:
    """What the service does, whatever the engine."""

    def __init__(
        self,
        engines: Mapping[EngineName, Engine],
        default_engine: EngineName,
        criteria: Mapping[str, Criterion],
        store: RubricStore,
        measure: MeasureAgreement,
    ) -> None:
        self._engines, self._default_engine, self._criteria, self._store, self._measure = engines, default_engine, criteria, store, measure
        self._creating: Memory[str, tuple[Rubric, Usage]] = Memory(0)
        self._rubrics: dict[str, Rubric] = {}

    async def create_rubric(self, draft: Draft) -> tuple[Rubric, Usage]:
        """Freezes a rubric. The same draft gives the same rubric; its steps are written once, also when asked for at the same time."""
        engine = self._engine(draft.engine or self._default_engine)
        asked = engine.freeze(draft)
        (rubric, usage), first = await self._creating.get(asked.hash, lambda: self._create(engine, asked))
        return rubric, usage if first else Usage()

    async def _create(self, engine: Engine, asked: Rubric) -> tuple[Rubric, Usage]:
        key = asked.hash
        known = await asyncio.to_thread(self._store.read if asked.steps else self._store.read_written_for, key)
        if known is not None:
            return known, Usage()
        steps, usage = (asked.steps, Usage()) if asked.steps else await engine.write_steps(asked)
        return await asyncio.to_thread(self._store.write, replace(asked, steps=steps), key), usage

    async def rubric(self, rubric_hash: str) -> Rubric:
        """Raises NotFound RUBRIC_NOT_FOUND."""
        found = self._rubrics.get(rubric_hash) or await asyncio.to_thread(self._store.read, rubric_hash)
        if found is None:
            raise NotFound("RUBRIC_NOT_FOUND", "no rubric {hash}: create it first, and judge by the hash that comes back", hash=rubric_hash)
        self._rubrics[rubric_hash] = found
        return found

    async def score(self, rubric_hash: str, case: Case, run_count: int | None, seed: int | None) -> Judgement:
        """Scores one answer, by the rubric's own number of runs where `run_count` is None."""
        rubric = await self.rubric(rubric_hash)
        criterion = self._criteria.get(rubric.criterion)
        if criterion is not None and criterion.needs_references and not case.references:
            raise InvalidArgument(
                "REFERENCES_MISSING",
                "criterion {criterion} compares with references: give at least one that is not blank",
                criterion=rubric.criterion,
                field="references",
            )
        count = rubric.run_count if run_count is None else run_count
        check_run_count(count)
        return await self._engine(rubric.engine).judge(rubric, case, count, seed)

    async def calibrate(self, rubric_hash: str, pairs: Sequence[Pair]) -> Agreement:
        """Agreement of judge and people on the rubric's scale. Raises InvalidArgument LABELS_TOO_FEW, SCORE_INVALID."""
        rubric = await self.rubric(rubric_hash)
        if len(pairs) < FEWEST_LABELS:
            raise InvalidArgument(
                "LABELS_TOO_FEW", "{count} pairs: give at least {fewest}", count=len(pairs), fewest=FEWEST_LABELS, field="pairs"
            )
        for number, pair in enumerate(pairs):
            for who, value in (("judge_score", pair.judge), ("human_score", pair.human)):
                if not (math.isfinite(value) and rubric.low <= value <= rubric.high):
                    raise InvalidArgument(
                        "SCORE_INVALID",
                        "{field} is {value}: scores of this rubric lie from {low} to {high}; leave out pairs that miss one",
                        field=f"pairs[{number}].{who}",
                        value=value,
                        low=rubric.low,
                        high=rubric.high,
                    )
        return await asyncio.to_thread(self._measure, pairs)

    def _engine(self, name: EngineName) -> Engine:
        engine = self._engines.get(name)
        if engine is None:
            raise FailedPrecondition(
                "ENGINE_NOT_CONFIGURED",
                "this judge has no engine {engine}: set TUNETRIAL_OPENAI_BASE_URL to an OpenAI-compatible endpoint, "
                "or TUNETRIAL_OPENAI_API_KEY, and restart it; or ask for engine reference",
                engine=name,
            )
        return engine


def check_run_count(count: int) -> None:
    """Raises InvalidArgument RUN_COUNT_INVALID."""
    if not 1 <= count <= MAX_RUNS:
        raise InvalidArgument("RUN_COUNT_INVALID", "run_count is {count}: give 1 to {most}", count=count, most=MAX_RUNS, field="run_count")
