"""The published adapters as the queue asks for them: in threads, because they may lie in a store that is slow or away. Knows no store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from services.common.errors import TunetrialError
from services.trainer.domain import Adapter, AdapterFolder, Job, JobState

_log = structlog.get_logger()
_AT_ONCE = 16
_TRIES, _RETRY_S, _HASTE_S = 4, 2.0, 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """What was there under a name when it was looked for."""

    time: datetime
    taken: bool
    adapter: Adapter | None
    """The one that the work in question makes."""

    def has(self, other: Job | None) -> bool:
        """Whether there is something under the name, if need be what a job has put there since."""
        return self.taken or self._since(other)

    def has_work(self, same: Job) -> bool:
        """Whether that is what the work makes, of which `same` is a job."""
        return self.adapter is not None or self._since(same)

    def _since(self, job: Job | None) -> bool:
        return job is not None and job.state is JobState.SUCCEEDED and job.end_time is not None and job.end_time >= self.time


class AdapterShelf:
    """Asks the folder or store behind it. Each call may raise Unavailable, or FailedPrecondition for a store that refuses."""

    def __init__(self, folder: AdapterFolder) -> None:
        self._folder = folder

    async def exists(self, name: str) -> bool:
        """Whether something is published under `name`."""
        return await asyncio.to_thread(self._folder.exists, name)

    async def find(self, name: str, work: str) -> Found:
        """What is published under `name`."""
        now = datetime.now(UTC)
        taken = await self.exists(name)
        return Found(now, taken, await asyncio.to_thread(self._folder.of_work, name, work) if taken else None)

    async def there(self, adapters: Sequence[Adapter]) -> list[Adapter]:
        """Those that are there."""

        def look() -> list[bool]:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                return list(threads.map(lambda adapter: self._folder.exists(adapter.name), adapters))

        return [adapter for adapter, is_there in zip(adapters, await asyncio.to_thread(look), strict=True) if is_there]

    async def made(self, job: Job, in_haste: bool = False) -> Adapter | None:
        """What a job has published, or somebody else with the same work; None as well where that cannot be seen.

        Then it waits a little and looks again; `in_haste` somebody waits for the job's end.
        """
        for left in reversed(range(1 if in_haste else _TRIES)):
            try:
                async with asyncio.timeout(_HASTE_S if in_haste else None):
                    return await asyncio.to_thread(self._made, job)
            except (TunetrialError, TimeoutError) as error:
                _log.warning("whether a job has published cannot be seen", job=job.id, error=str(error))
            await asyncio.sleep(_RETRY_S if left else 0)
        return None

    def _made(self, job: Job) -> Adapter | None:
        name = job.spec.adapter_name
        return self._folder.published(name, job.id) or self._folder.of_work(name, job.work)

    async def clear(self, job_id: str | None = None) -> None:
        """Removes what unfinished jobs left behind: of one job, or of all."""
        await asyncio.to_thread(self._folder.discard_partial, job_id)
