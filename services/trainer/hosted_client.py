"""A provider's fine-tuning service by the OpenAI protocol (client: openai). Knows no queue, and remembers nothing.

Whatever makes something (a file, a job) is asked once a call: whether to ask again is for the caller to decide, who can look first.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
from openai.types import FileObject, Model
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from services.common.errors import NotFound
from services.trainer.hosted_errors import explained, no_provider
from services.trainer.hosted_settings import HostedTraining

_Answer = TypeVar("_Answer")

_TRIES = 2
"""Further tries of what makes nothing, by the client: after 408, 409, 429, 5xx and lost connections, as long as the provider says."""
_PAGE = 100
_STEP = re.compile(r"step (\d+)(?:/(\d+))?", re.IGNORECASE)
WORK, JOB = "tunetrial_work", "tunetrial_job"
"""Keys of a provider's job's metadata."""


@dataclass(frozen=True, slots=True)
class ProviderJob:
    """A job at the provider. Times are seconds since 1970."""

    id: str
    status: str
    """validating_files, queued, running, succeeded, failed, cancelled, or whatever else it says."""
    training_file: str
    metadata: Mapping[str, str]
    model: str
    """What came of it; empty before."""
    error: str
    trained_tokens: int | None
    created: float
    finished: float | None
    expected_end: float | None
    hyperparameters: Mapping[str, Any]
    """As the provider chose them, where it says so."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What the provider told of a step."""

    step: int
    step_count: int
    loss: float | None
    evaluation_loss: float | None


class Provider:
    """Needs to be closed. All calls raise Unavailable when another try is worth it, and FailedPrecondition or InvalidArgument when not."""

    def __init__(self, settings: HostedTraining) -> None:
        """Contacts nothing."""
        self._settings = settings
        self._client = openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=settings.api_key(),
            timeout=openai.Timeout(settings.timeout_s, connect=settings.connect_timeout_s),
            max_retries=_TRIES,
            http_client=openai.DefaultAsyncHttpxClient(verify=settings.trust()),
        )
        self._once = self._client.with_options(max_retries=0)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def has_file(self, id_: str) -> bool:
        """Whether a file is there still."""
        try:
            return _is_whole(await self._ask(lambda: self._client.files.retrieve(id_), FileObject))
        except NotFound:
            return False

    async def find_file(self, name: str, size: int) -> str | None:
        """The id of a file of this name and size."""

        async def look() -> str | None:
            async for file in self._client.files.list(purpose="fine-tune"):
                if (file.filename, file.bytes) == (name, size) and _is_whole(file):
                    return file.id
            return None

        return await self._ask(look)

    async def upload(self, path: Path, name: str) -> str:
        """The id of the file that it makes."""
        with path.open("rb") as content:
            return (await self._ask(lambda: self._once.files.create(file=(name, content), purpose="fine-tune"), FileObject)).id

    async def find_jobs(self, fits: Callable[[ProviderJob], bool], **metadata: str) -> list[ProviderJob]:
        """Jobs that fit, newest first; a provider may leave out those without these metadata."""

        async def look() -> list[ProviderJob]:
            listed = self._client.fine_tuning.jobs.list(limit=_PAGE, metadata=metadata or openai.omit)
            return [job async for job in _each(listed) if fits(job)]

        return await self._ask(look)

    async def create(
        self, model: str, training_file: str, validation_file: str | None, suffix: str, seed: int, hyperparameters: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> ProviderJob:  # fmt: skip
        """A new job, which costs money. Raises NotTaken when surely none was made."""
        request: dict[str, Any] = {
            "model": model,
            "training_file": training_file,
            "suffix": suffix,
            "seed": seed,
            "metadata": dict(metadata),
        }
        if validation_file is not None:
            request["validation_file"] = validation_file
        if hyperparameters:
            request["method"] = {"type": "supervised", "supervised": {"hyperparameters": dict(hyperparameters)}}
        return _job(await self._ask(lambda: self._once.fine_tuning.jobs.create(**request), FineTuningJob))

    async def job(self, id_: str) -> ProviderJob:
        """A job as it now is. Raises NotFound."""
        return _job(await self._ask(lambda: self._client.fine_tuning.jobs.retrieve(id_), FineTuningJob))

    async def cancel(self, id_: str) -> None:
        """Ends a job. Raises NotFound, InvalidArgument when it has ended already."""
        await self._ask(lambda: self._client.fine_tuning.jobs.cancel(id_), FineTuningJob)

    async def metrics(self, id_: str, known: Mapping[str, Metric | None]) -> dict[str, Metric | None]:
        """What the provider told of a job since, by the ids of its events, the newest first; None for words."""

        async def look() -> dict[str, Metric | None]:
            found: dict[str, Metric | None] = {}
            page = await self._client.fine_tuning.jobs.list_events(id_, limit=_PAGE)
            while True:
                fresh = [event for event in page.data or () if event.id not in known]
                found |= {event.id: _metric(event) for event in fresh}
                if not fresh or not page.has_next_page():
                    return found
                page = await page.get_next_page()

        try:
            return await self._ask(look)
        except NotFound:  # it tells nothing of its jobs
            return {}

    async def has_model(self, id_: str) -> bool:
        """Whether a model is there still."""
        try:
            await self._ask(lambda: self._client.models.retrieve(id_), Model)
        except NotFound:
            return False
        return True

    async def _ask(self, call: Callable[[], Awaitable[_Answer]], kind: type = object) -> _Answer:
        key = self._client.api_key
        with explained(self._settings.url):
            try:
                made = await call()
            except openai.AuthenticationError:
                if not await self._has_another_key(key):
                    raise
                made = await call()
        # The client builds what it gets without checking it; a page for people comes as a text.
        if not isinstance(made, kind) or (isinstance(made, FileObject | FineTuningJob) and not made.id):
            raise no_provider(self._settings.url)
        return made

    async def _has_another_key(self, refused: str) -> bool:
        """Whether there is an API key by now that is not the one refused: key files are written anew when keys change."""
        if self._client.api_key == refused:
            try:
                key = await asyncio.to_thread(self._settings.api_key)
            except ValueError:
                return False
            self._client.api_key = self._once.api_key = key
        return self._client.api_key != refused


async def _each(listed: AsyncIterable[FineTuningJob]) -> AsyncIterator[ProviderJob]:
    async for job in listed:
        yield _job(job)


def _is_whole(file: FileObject) -> bool:
    return getattr(file, "status", None) != "error"


def _job(job: FineTuningJob) -> ProviderJob:
    method = getattr(job, "method", None)
    chosen = method.supervised.hyperparameters if method is not None and method.supervised is not None else None
    chosen = chosen or getattr(job, "hyperparameters", None)
    error = getattr(job, "error", None)
    words = [getattr(error, name, None) for name in ("message", "code", "param")] if error is not None else []
    details = ", ".join(str(word) for word in words[1:] if word)
    return ProviderJob(
        id=job.id,
        status=str(job.status),
        training_file=str(getattr(job, "training_file", "")),
        metadata=getattr(job, "metadata", None) or {},
        model=getattr(job, "fine_tuned_model", None) or "",
        error=f"{words[0]}{f' ({details})' if details else ''}" if words and words[0] else details,
        trained_tokens=getattr(job, "trained_tokens", None),
        created=float(getattr(job, "created_at", 0) or 0),
        finished=getattr(job, "finished_at", None),
        expected_end=getattr(job, "estimated_finish", None),
        hyperparameters={} if chosen is None else {name: value for name, value in chosen.model_dump().items() if value is not None},
    )


def _metric(event: FineTuningJobEvent) -> Metric | None:
    data: Any = event.data if isinstance(event.data, dict) else {}
    named = _STEP.search(event.message or "")
    step = data.get("step") if isinstance(data.get("step"), int) else int(named[1]) if named and data else None
    if step is None:
        return None
    told = data.get("total_steps")
    count = told if isinstance(told, int) and told else int(named[2]) if named and named[2] else 0
    whole, part = _number(data, "full_valid_loss"), _number(data, "valid_loss")
    return Metric(step, count, _number(data, "train_loss"), part if whole is None else whole)


def _number(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
