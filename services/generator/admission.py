"""Who may use an engine now, and who waits. Knows no engine and no wire.

Callers take turns: one that sends a thousand prompts at once does not keep another waiting for all of them. Within a caller the order is
kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from services.common.errors import ResourceExhausted


class Admission:
    """Lets so many requests at once into an engine; of those who wait, each caller has its own queue."""

    def __init__(self, name: str, capacity: int, queue_limit: int) -> None:
        """`name` is that of the engine's base, for errors; at most `queue_limit` impatient requests wait, beside all patient ones."""
        self._name, self._capacity, self._queue_limit = name, capacity, queue_limit
        self._running = self._impatient = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._turns: deque[str] = deque()
        """Callers with a queue, the next one first."""

    @property
    def running_count(self) -> int:
        """Requests in the engine."""
        return self._running

    @property
    def waiting_count(self) -> int:
        """Requests in the queues."""
        return sum(map(len, self._waiting.values()))

    @contextlib.asynccontextmanager
    async def enter(self, caller: str, *, patient: bool) -> AsyncIterator[None]:
        """A place in the engine. Raises ResourceExhausted QUEUE_FULL, unless `patient`: such a caller bounds its own requests, and does
        not fill the queue for others.
        """
        await self._take(caller, patient)
        try:
            yield
        finally:
            self._running -= 1
            self._call()

    async def _take(self, caller: str, patient: bool) -> None:
        if self._running < self._capacity and not self._turns:
            self._running += 1
            return
        if patient:
            await self._wait(caller)
            return
        if self._impatient >= self._queue_limit:
            message = "{waiting} requests wait for model {name} already"
            raise ResourceExhausted("QUEUE_FULL", message, waiting=self._impatient, name=self._name, retry_after_s=1)
        self._impatient += 1
        try:
            await self._wait(caller)
        finally:
            self._impatient -= 1

    async def _wait(self, caller: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if caller not in self._waiting:
            self._waiting[caller] = deque()
            self._turns.append(caller)
        self._waiting[caller].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # called and cancelled in the same moment: the place goes to the next
                self._running -= 1
                self._call()
            else:
                self._forget(caller, turn)
            raise

    def _call(self) -> None:
        while self._running < self._capacity and self._turns:
            caller = self._turns.popleft()
            turn = self._waiting[caller].popleft()
            if self._waiting[caller]:
                self._turns.append(caller)
            else:
                del self._waiting[caller]
            if not turn.done():
                turn.set_result(None)
                self._running += 1

    def _forget(self, caller: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(caller)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[caller]
                self._turns.remove(caller)
