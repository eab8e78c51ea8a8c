"""Work of concurrent callers done together. Knows not what the work is.

While as many batches are under way as may be, items gather for the next; when none is, an item goes at once and waits for nobody. In
between, the next batch may wait a moment for more items: few large batches cost less than many small ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    result: asyncio.Future[Result]


class Batching(Generic[Item, Result]):
    """Hands items to `work` in batches of at most `largest`, at most `in_flight` batches at a time, in the order they came."""

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, largest: int, in_flight: int, wait_s: float = 0.0
    ) -> None:
        """`work` returns one result for each item, in order; what it raises is raised to all callers of the batch. While a batch is under
        way, the next one waits `wait_s` for more items, unless it is full.
        """
        self._work, self._largest, self._in_flight, self._wait_s = work, largest, in_flight, wait_s
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, *items: Item) -> list[Result]:
        """Results of these items. A caller who goes away takes those out of the queue that no batch has taken yet."""
        loop = asyncio.get_running_loop()
        mine: list[_Waiting[Item, Result]] = [_Waiting(item, loop.create_future()) for item in items]
        self._waiting.extend(mine)
        self._start()
        return await asyncio.gather(*(each.result for each in mine))

    def _start(self) -> None:
        if self._wait_s and self._running and len(self._waiting) < self._largest:
            if self._waiting and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._running) < self._in_flight:
            batch: list[_Waiting[Item, Result]] = []
            while self._waiting and len(batch) < self._largest:
                each = self._waiting.popleft()
                if not each.result.done():
                    batch.append(each)
            if batch:
                task = asyncio.create_task(self._run(batch))
                self._running.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        try:
            results = await self._work([each.item for each in batch])
        except Exception as error:
            for each in batch:
                if not each.result.done():
                    each.result.set_exception(error)
            return
        for each, result in zip(batch, results, strict=True):
            if not each.result.done():
                each.result.set_result(result)
