"""Another try for work whose service died or is away. Knows no work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from flows.clients import ServiceError
from flows.local_stack import ServiceDied
from flows.progress import Progress

Result = TypeVar("Result")

# As in a trial: what is away is waited for, for some five minutes.
_WAITS_S = (1.0, 5.0, 15.0, *([20.0] * 15))
# Further tries where waiting longer is not likely to help: a service that dies, a limit that is reached.
_FEW = 3
# Waiting makes no room.
_FINAL = ("INDEX_FULL", "DISK_FULL")


async def persistently(progress: Progress, work: Callable[[], Awaitable[Result]]) -> Result:
    """The result of work that keeps what it has done, tried again when a service died or is away for a while."""
    for tries, wait in enumerate(_WAITS_S, 1):
        try:
            return await work()
        except (ServiceDied, ServiceError) as error:
            if not _worth_another_try(error, tries):
                raise
            progress.say(f"again in {wait:g} s; {str(error).splitlines()[0]}")
            await asyncio.sleep(wait)
    return await work()


def _worth_another_try(error: ServiceDied | ServiceError, tries: int) -> bool:
    if isinstance(error, ServiceError) and error.code == "UNAVAILABLE":
        return True
    full = isinstance(error, ServiceError) and error.code == "RESOURCE_EXHAUSTED" and error.reason not in _FINAL
    return (full or isinstance(error, ServiceDied)) and tries <= _FEW
