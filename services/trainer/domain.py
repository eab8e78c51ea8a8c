"""What is trained, how far it is and what came of it: values and ports. Knows no wire, no database and no training library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

from services.trainer.spec import TrainingSpec


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
    provider: str | None = None
    """Address of the provider that trains it; there is nothing here of its base then."""


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
    peak_memory_mib: float | None = None
    """Of the CUDA device, or of the process where there is none."""
    checkpoint_step: int = 0
    """Step from which it would go on if it were interrupted; 0 is the start."""


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
    final_loss: float | None
    """None where a provider did not tell."""
    trained_tokens: int
    training_s: float
    dataset: DatasetReport
    library_versions: Mapping[str, str]
    create_time: datetime
    evaluation_loss: float | None = None
    """Of the weights that it has; None without evaluation data, and for adapters of before it was kept."""


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
class Store:
    """An object store for adapters."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its library is told beside; no secrets."""
    patience_s: float = 300.0
    """How long a process that has something to publish waits for a store that is away."""


@dataclass(frozen=True, slots=True)
class Order:
    """All that a training process is told."""

    job_id: str
    spec: TrainingSpec
    inputs: Inputs
    work: str
    adapters_dir: str
    checkpoints_dir: str
    """Folder that holds what interrupted work goes on from; equal work of another job too."""
    checkpoint_s: float
    """Seconds between two checkpoints."""
    threads: int
    """Of each process."""
    processes: int = 1
    """That share the batch."""
    four_bit_on_cpu: bool = False
    """Whether a base in four bits may do without CUDA."""
    store: Store | None = None
    """Where to publish instead of in `adapters_dir`."""
    report_to: tuple[str, ...] = ()
    """Who else is told how it goes."""


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
class Interrupted:
    """It was told to end and wrote down where it stood."""

    kind: Literal["interrupted"] = "interrupted"


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


Event = Started | DatasetRead | Progressed | Interrupted | Failed | Exited


class TrainingRun(Protocol):
    """One attempt at a job."""

    def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last is Exited. To be read once."""

    async def stop(self) -> None:
        """Ends it for good within 5 seconds, whatever it does; returns when it is gone."""

    async def leave(self) -> None:
        """The service ends and the job is to go on after it: lets go of what goes on without the service, and ends the rest as `stop`."""


class Launcher(Protocol):
    """Port to where jobs run."""

    @property
    def has_cuda(self) -> bool:
        """Whether jobs find a CUDA device."""

    @property
    def processes(self) -> int:
        """How many share the batch of a job."""

    def takes_slot(self, spec: TrainingSpec) -> bool:
        """Whether such a job needs a place here to run; of others any number run at once."""

    async def launch(self, order: Order) -> TrainingRun:
        """Starts a job. May be cancelled. Raises OSError, TunetrialError."""

    def drop(self, job_id: str) -> None:
        """Begins to end what an earlier service may have left running of a job that was not launched here."""

    async def close(self) -> None:
        """Frees what is kept between jobs."""


class InputReader(Protocol):
    """Port to bases and data."""

    async def read(self, spec: TrainingSpec) -> Inputs:
        """Checks and hashes.

        Raises InvalidArgument BASE_UNREADABLE, DATASET_UNREADABLE, URI_NOT_ALLOWED, FailedPrecondition HOSTED_NOT_CONFIGURED.
        """


class AdapterFolder(Protocol):
    """Port to the published adapters. Its methods may block, and raise Unavailable where adapters are elsewhere."""

    @property
    def path(self) -> str:
        """Where training processes publish."""

    @property
    def store(self) -> Store | None:
        """Where they publish instead, if anywhere."""

    def exists(self, name: str) -> bool:
        """Whether something is published under `name`."""

    def published(self, name: str, job_id: str) -> Adapter | None:
        """The adapter `name` if that job made it."""

    def of_work(self, name: str, work: str) -> Adapter | None:
        """The adapter `name` if that work makes it, whoever did it."""

    def discard_partial(self, job_id: str | None = None) -> None:
        """Removes what unfinished jobs left behind: of one job, or of all."""


class Checkpoints(Protocol):
    """Port to what interrupted work goes on from."""

    def path(self, work: str) -> str:
        """Where training processes keep that of a work."""

    def discard(self, work: str) -> None:
        """Removes it."""


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
