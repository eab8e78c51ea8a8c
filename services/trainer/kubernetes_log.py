"""The log of a pod as lines, each once, through broken connections. Knows no training."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import structlog

from services.common.errors import NotFound, TunetrialError
from services.trainer.kubernetes_api import KubernetesApi

_log = structlog.get_logger()
_LINE_BYTES = 2**20


async def lines(api: KubernetesApi, pod: str, container: str, ended: Callable[[], bool], pause_s: float) -> AsyncIterator[str]:
    """All lines, as they come. Ends when `ended` says that the process has and all that it wrote was read, or when the pod is gone."""
    place, complaint = _Place(), ""
    while True:
        # Asked before: what was written by then is in the log that is read now.
        last = ended()
        try:
            async for line in _split(api.log(pod, container, place.since)):
                if (new := place.new(line)) is not None:
                    yield new
            if last:
                return
        except NotFound:
            return
        except TunetrialError as error:
            if error.message != complaint:
                _log.warning("the log of a pod cannot be read now", pod=pod, error=error.message)
            complaint = error.message
        await asyncio.sleep(pause_s)


async def _split(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        rest = rest[:_LINE_BYTES]
        for line in whole:
            yield line.decode("utf-8", "replace")
    # What has no end was cut off, and comes again with the next connection.


class _Place:
    """How far the log was read. Lines have the time at which they were written in front, and are in its order."""

    def __init__(self) -> None:
        self._last = datetime.min.replace(tzinfo=UTC)
        self._at_last: set[str] = set()
        self.since = ""

    def new(self, line: str) -> str | None:
        """The line without its time; None when it was there before, or is none of the process."""
        stamp, _, text = line.partition(" ")
        try:
            time = datetime.fromisoformat(stamp)
        except ValueError:
            return None
        # The API counts in whole seconds, so some lines come twice.
        if time.tzinfo is None or time < self._last or (time == self._last and line in self._at_last):
            return None
        if time > self._last:
            self._last, self._at_last = time, set()
            self.since = time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._at_last.add(line)
        return text
