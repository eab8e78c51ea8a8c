"""Work that is done once for all who ask for it, and remembered. Knows nothing of what the work is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Work(Generic[V]):
    task: asyncio.Future[V]
    waiting: int = 0
    claimed: bool = False


class Memory(Generic[K, V]):
    """The values of the `capacity` keys used last. One that is being made is shared by all who ask meanwhile; failures are not kept."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._done: OrderedDict[K, V] = OrderedDict()
        self._under_way: dict[K, _Work[V]] = {}

    async def get(self, key: K, make: Callable[[], Awaitable[V]]) -> tuple[V, bool]:
        """The value, and whether this call is the first to get it: the one whose account it goes to. Raises what `make` raises.

        When the last caller that waits is cancelled, so is the work.
        """
        if key in self._done:
            self._done.move_to_end(key)
            return self._done[key], False
        work = self._under_way.get(key)
        if work is None:
            work = self._under_way[key] = _Work(asyncio.ensure_future(make()))
            work.task.add_done_callback(lambda task: self._finish(key, task))
        work.waiting += 1
        try:
            value = await asyncio.shield(work.task)
            first, work.claimed = not work.claimed, True
            return value, first
        finally:
            work.waiting -= 1
            if not work.waiting and not work.task.done():
                # A later caller must start anew, not wait for work that is being cancelled.
                del self._under_way[key]
                work.task.cancel()

    def _finish(self, key: K, task: asyncio.Future[V]) -> None:
        work = self._under_way.get(key)
        if work is not None and work.task is task:
            del self._under_way[key]
        if task.cancelled() or task.exception() is not None or not self._capacity:
            return
        self._done[key] = task.result()
        while len(self._done) > self._capacity:
            self._done.popitem(last=False)
