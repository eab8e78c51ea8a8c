"""What is trained, how far it is and what came of it: values, rules and ports. Knows no wire, no database and no training library."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, Protocol

from services.common.errors import InvalidArgument, Unimplemented

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_SCHEDULES = ("linear", "cosine", "constant")


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether it can change no more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


def _refuse(name: str, message: str) -> InvalidArgument:
    return InvalidArgument("SETTING_OUT_OF_RANGE", "{field} {message}", field=f"spec.sft.{name}", message=message)


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
    ) -> Optimization:
        """Settings as asked for, None for what was left open. Raises InvalidArgument SETTING_OUT_OF_RANGE."""
        if epochs is not None and max_steps is not None:
            raise _refuse("optimization.max_steps", "and epochs exclude each other: set one of them")
        if max_steps is None:
            epochs = 3.0 if epochs is None else epochs
            _check("optimization.epochs", epochs, epochs > 0, "above 0")
        else:
            _check("optimization.max_steps", max_steps, max_steps >= 1, "at least 1")
        learning_rate = 2e-4 if learning_rate is None else learning_rate
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
        return cls(epochs, max_steps, learning_rate, batch_size, micro, max_length, warmup, decay, schedule, norm)


@dataclass(frozen=True, slots=True)
class SupervisedFineTuning:
    """Fine-tuning on the assistant's tokens."""

    lora: Lora
    optimization: Optimization
    kind: Literal["sft"] = "sft"


def unsupported(method: str) -> Unimplemented:
    """The error for a method of the contract that this service does not do."""
    return Unimplemented("METHOD_NOT_SUPPORTED", "method {method} is not supported here: use sft", method=method, field=f"spec.{method}")


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """What to train. Raises InvalidArgument when a part is out of range."""

    adapter_name: str
    base: str
    dataset_uri: str
    evaluation_uri: str
    """Empty for none."""
    seed: int
    method: SupervisedFineTuning

    def __post_init__(self) -> None:
        if not _ADAPTER_NAME.fullmatch(self.adapter_name):
            message = "spec.adapter_name must be 1 to 128 letters, digits, '.', '-' or '_' and not begin with '.', not {name!r}"
            raise InvalidArgument("ADAPTER_NAME_INVALID", message, name=self.adapter_name, field="spec.adapter_name")
        for name in ("base", "dataset_uri"):
            if not getattr(self, name):
                raise InvalidArgument("FIELD_MISSING", "set {field}", field=f"spec.{name}")
        # The range that numpy's generator takes.
        if not 0 <= self.seed < 2**32:
            message = "spec.seed must be 0 to 4294967295, not {seed}"
            raise InvalidArgument("SETTING_OUT_OF_RANGE", message, seed=self.seed, field="spec.seed")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a job reads, pinned by hash when the job was created. Paths are local and absolute."""

    base_path: str | None
    """Folder of the base; None when it is to be fetched from the hub."""
    base_hub_name: str | None
    """Name on the hub of a base from there."""
    base_revision: str | None
    """Its commit."""
    base_sha256: str | None
    """Of the weights; None while they are not here."""
    base_text_sha256: str | None
    """Of configuration, tokenizer and chat template; None while they are not here."""
    dataset_path: str
    dataset_sha256: str
    evaluation_path: str | None
    evaluation_sha256: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; None for what was not reported yet."""

    step: int = 0
    step_count: int = 0
    loss: float | None = None
    evaluation_loss: float | None = None
    tokens_per_second: float | None = None
    remaining_s: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a job learnt about its training data; the contract says what each counts."""

    example_count: int
    truncated_count: int
    masked_count: int
    token_count: int
    answer_token_count: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """A finished adapter."""

    name: str
    uri: str
    base: str
    base_sha256: str
    weights_sha256: str
    dataset_sha256: str
    job_id: str
    final_loss: float
    trained_tokens: int
    training_s: float
    dataset: DatasetReport
    library_versions: Mapping[str, str]
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """A training job. Times are in UTC."""

    id: str
    spec: TrainingSpec
    inputs: Inputs
    work: str
    """Hash of all that decides the result; jobs of equal work are the same job."""
    create_time: datetime
    state: JobState = JobState.QUEUED
    progress: Progress = field(default_factory=Progress)
    dataset: DatasetReport | None = None
    error: str = ""
    adapter: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """All that a training process is told."""

    job_id: str
    spec: TrainingSpec
    inputs: Inputs
    work: str
    adapters_dir: str
    threads: int


@dataclass(frozen=True, slots=True)
class Started:
    """The process runs; it leads its own process group."""

    pid: int
    kind: Literal["started"] = "started"


@dataclass(frozen=True, slots=True)
class DatasetRead:
    """The data were read."""

    report: DatasetReport
    kind: Literal["dataset_read"] = "dataset_read"


@dataclass(frozen=True, slots=True)
class Progressed:
    """It got further."""

    progress: Progress
    kind: Literal["progressed"] = "progressed"


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot finish; `error` says what to change."""

    error: str
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone. `code` is negative for a signal and None where nobody saw it end; `log` is the end of what it wrote."""

    code: int | None
    log: str = ""
    kind: Literal["exited"] = "exited"


Event = Started | DatasetRead | Progressed | Failed | Exited


class TrainingRun(Protocol):
    """One attempt at a job."""

    def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last is Exited. To be read once."""

    async def stop(self) -> None:
        """Ends it within 5 seconds, whatever it does; returns when it is gone."""


class Launcher(Protocol):
    """Port to where jobs run."""

    @property
    def has_cuda(self) -> bool:
        """Whether jobs find a CUDA device."""

    async def launch(self, order: Order) -> TrainingRun:
        """Starts a job. May be cancelled. Raises OSError."""

    async def close(self) -> None:
        """Frees what is kept between jobs."""


class InputReader(Protocol):
    """Port to bases and data."""

    async def read(self, spec: TrainingSpec) -> Inputs:
        """Checks and hashes. Raises InvalidArgument BASE_UNREADABLE, DATASET_UNREADABLE, URI_NOT_ALLOWED."""


class AdapterFolder(Protocol):
    """Port to the published adapters."""

    def exists(self, name: str) -> bool:
        """Whether something is published under `name`."""

    def published(self, name: str, job_id: str) -> Adapter | None:
        """The adapter `name` if that job made it."""

    def discard_partial(self, job_id: str | None = None) -> None:
        """Removes what unfinished jobs left behind: of one job, or of all."""


class JobStore(Protocol):
    """Port to what outlives the process. `alive` means neither failed nor cancelled."""

    async def add(self, job: Job) -> None:
        """Stores a new job."""

    async def update(self, job: Job) -> None:
        """Stores a job anew."""

    async def get(self, id_: str) -> Job | None:
        """The job, or None."""

    async def remember_request(self, request_id: str, job_id: str) -> None:
        """From now on `by_request` gives that job."""

    async def by_request(self, request_id: str) -> Job | None:
        """The job that answered a request."""

    async def alive_with_work(self, work: str) -> Job | None:
        """The newest alive job of that work."""

    async def alive_with_adapter(self, name: str) -> Job | None:
        """The newest alive job that makes that adapter."""

    async def in_state(self, state: JobState) -> Sequence[Job]:
        """Oldest first."""

    async def page(self, state: JobState | None, before: int | None, size: int) -> Sequence[tuple[int, Job]]:
        """Newest first, each with its number; only numbers below `before`."""

    async def put_adapter(self, adapter: Adapter) -> None:
        """Stores an adapter in place of an earlier one of its name."""

    async def get_adapter(self, name: str) -> Adapter | None:
        """The adapter, or None."""

    async def adapters_page(self, base: str, before: int | None, size: int) -> Sequence[tuple[int, Adapter]]:
        """Newest first, each with its number; only numbers below `before`; an empty base means all."""
