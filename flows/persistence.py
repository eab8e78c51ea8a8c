"""Another try for work whose service died or is away. Knows no work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from flows.clients import ServiceError
from flows.local_stack import ServiceDied
from flows.progress import Progress

Result = TypeVar("Result")

WAITS_S = (1.0, 5.0, 15.0, *([20.0] * 15))
"""Seconds before each further try: what is away is waited for, for some five minutes."""
_FEW = 3
"""Further tries where waiting longer is not likely to help: a service that dies, a limit that is reached."""
# Waiting makes no room.
_FINAL = ("INDEX_FULL", "DISK_FULL")


def worth_another_try(error: object, tries: int) -> bool:
    """Whether work that has failed `tries` times, last by `error`, may succeed when it is done again."""
    if isinstance(error, ServiceError) and error.code == "UNAVAILABLE":
        return True
    full = isinstance(error, ServiceError) and error.code == "RESOURCE_EXHAUSTED"
    return (full or isinstance(error, ServiceDied)) and tries <= _FEW


async def persistently(progress: Progress, work: Callable[[], Awaitable[Result]]) -> Result:
    """The result of work that keeps what it has done, tried again when a service died or is away for a while."""
    for tries, wait in enumerate(WAITS_S, 1):
        try:
            return await work()
        except (ServiceDied, ServiceError) as error:
            final = isinstance(error, ServiceError) and error.reason in _FINAL
            if final or not worth_another_try(error, tries):
                raise
            progress.say(f"again in {wait:g} s; {str(error).splitlines()[0]}")
            await asyncio.sleep(wait)
    return await work()
