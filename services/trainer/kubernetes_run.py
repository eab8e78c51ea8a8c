"""One job's pods: what they tell, what they wait for, how they end. Knows no manifest and makes nothing.

The Job is looked at every few seconds instead of watched: a look says all there is to know, after any pause, and there is nothing to lose
or to resume. What is worth being quick for, the log, comes as a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from services.common.errors import NotFound, TunetrialError
from services.trainer import kubernetes_log
from services.trainer.domain import Event, Exited, Failed, Started
from services.trainer.kubernetes_api import KubernetesApi
from services.trainer.kubernetes_manifest import CONTAINER, JOB_LABEL
from services.trainer.kubernetes_settings import KubernetesTraining
from services.trainer.kubernetes_state import End, Wait, end_of, has_begun, has_ended, last_words, leads, pods_of, wait_of
from services.trainer.pod import event_in

_log = structlog.get_logger()
_KEPT_LINES = 20
_QUICK_S = 0.5
"""Between looks while somebody waits for the end."""
_READ_OUT_S = 15.0
"""Longest wait for the rest of a log once the Job has ended."""
_SILENT_LOOKS = 10
"""Looks at a Job of which nothing runs before its events are asked why, and between two such questions."""
_END_S = 8.0
"""A Job of which a process reported why it failed has so long to end; under torchrun its exit code is lost, and it would be tried again."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take at most."""

    poll_s: float
    """Between looks at a Job."""
    grace_s: float
    """From SIGTERM to SIGKILL when a job is cancelled."""
    stop_s: float
    """From the wish to cancel to its end, whatever the cluster does."""


class KubernetesRun:
    """One Job. `remove` deletes it, trying on until that is accepted."""

    def __init__(
        self,
        api: KubernetesApi,
        job: dict[str, Any],
        settings: KubernetesTraining,
        timing: Timing,
        remove: Callable[[], asyncio.Task[None]],
    ) -> None:
        self._api, self._settings, self._timing, self._remove = api, settings, timing, remove
        self._name, self._uid = job["metadata"]["name"], job["metadata"]["uid"]
        self._selector = f"{JOB_LABEL}={job['metadata']['labels'][JOB_LABEL]}"
        self._told: asyncio.Queue[Event | None] = asyncio.Queue()
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._ended: set[str] = set()
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._noted: set[str] = set()
        self._wait: Wait | None = None
        self._stuck_since: float | None = None
        self._silent_looks = 0
        self._failed_at: float | None = None
        self._stopping, self._let_go, self._gone = False, asyncio.Event(), asyncio.Event()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last is Exited. To be read once."""
        watching = asyncio.create_task(self._watch())
        watching.add_done_callback(lambda _: self._told.put_nowait(None))
        try:
            while (event := await self._told.get()) is not None:
                yield event
            yield watching.result()
        finally:
            self._gone.set()
            for task in (watching, *self._readers.values()):
                task.cancel()

    async def stop(self) -> None:
        """Deletes the Job and its pods; returns when they are gone, or when that takes too long. `events` must be read meanwhile."""
        self._stopping = True
        self._remove()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), self._timing.stop_s)
            return
        _log.warning("a cancelled job's pods take long to end", job=self._name)
        await self.leave()

    async def leave(self) -> None:
        """Deletes nothing: the next service adopts the Job. `events` must be read meanwhile."""
        self._let_go.set()
        await self._gone.wait()

    async def _watch(self) -> Exited:
        try:
            while not self._let_go.is_set():
                exited = await self._look()
                if exited is not None:
                    return exited
                pause = min(self._timing.poll_s, _QUICK_S) if self._stopping else self._timing.poll_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._let_go.wait(), pause)
        except Exception:
            # A Job that nobody follows would train for nobody.
            self._remove()
            raise
        return Exited(None, last_words(self._lines))

    async def _look(self) -> Exited | None:
        """Takes in how things stand; what the end was, once there is one."""
        try:
            job = await self._api.get(f"jobs/{self._name}")
            if job["metadata"]["uid"] != self._uid:
                return self._deleted()
            pods = pods_of(job, (await self._api.get("pods", {"labelSelector": self._selector}))["items"])
        except NotFound:
            return self._deleted()
        except TunetrialError as error:
            # The job goes on all the same, and so does the wait for its end.
            self._note("a job's pods cannot be asked for now", error.message)
            return None
        self._ended |= {pod["metadata"]["uid"] for pod in pods if has_ended(pod)}
        for pod in pods:
            if leads(pod) and has_begun(pod) and pod["metadata"]["uid"] not in self._readers:
                self._readers[pod["metadata"]["uid"]] = asyncio.create_task(self._read(pod))
        end = end_of(job, pods)
        if end is not None:
            await self._read_out()
            return self._exited(end)
        if self._stopping or job["metadata"].get("deletionTimestamp"):
            return None
        await self._look_for_troubles(job, pods)
        return self._given_up()

    async def _look_for_troubles(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        waiting, runs = wait_of(job, pods, self._settings.queue), any(has_begun(pod) and not has_ended(pod) for pod in pods)
        if waiting is not None or runs:
            self._silent_looks = 0
        else:
            self._silent_looks += 1
            if self._silent_looks % _SILENT_LOOKS == 0:
                said = await self._warning([*(pod["metadata"]["uid"] for pod in reversed(pods) if not has_ended(pod)), self._uid])
                waiting = Wait(said) if said else None
        if waiting is None or not waiting.stuck:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = time.monotonic()
        if waiting is not None:
            self._note("a job waits", waiting.words)
            self._wait = waiting
        elif runs:
            self._wait = None

    async def _warning(self, uids: list[str]) -> str:
        """The newest warning about one of these objects: a quota that is used up, a volume that cannot be mounted."""
        for uid in uids:
            with contextlib.suppress(TunetrialError):  # a right that is nice to have
                query = {"fieldSelector": f"involvedObject.uid={uid},type=Warning"}
                events = (await self._api.get("events", query))["items"]
                if events:
                    newest = max(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
                    return f"{newest.get('reason', '')}: {newest.get('message', '')}"[:500]
        return ""

    def _given_up(self) -> Exited | None:
        """The end, where the Job would not come to one by itself."""
        now = time.monotonic()
        if self._wait is not None and self._stuck_since is not None and now - self._stuck_since > self._settings.start_timeout_s:
            self._told.put_nowait(Failed(f"{self._wait.words}; it was tried for {self._settings.start_timeout_s:g} s (start_timeout_s)"))
        elif self._failed_at is None or now - self._failed_at < _END_S:
            return None
        self._remove()
        return Exited(None, last_words(self._lines))

    def _exited(self, end: End) -> Exited:
        if end.succeeded:
            return Exited(0, last_words(self._lines))
        # Where the log was out of reach, its end is known still.
        for line in end.said.splitlines():
            event = event_in(line)
            if isinstance(event, Failed) and self._failed_at is None:
                self._tell(event)
        plain = [line for line in end.said.splitlines() if event_in(line) is None]
        if (end.code is None or end.too_long) and self._failed_at is None:
            # No process is to blame, so the cluster's own words are the reason.
            why = "; ".join(part for part in (end.evicted, end.why, self._wait.words if self._wait is not None else "") if part)
            self._told.put_nowait(Failed(f"the cluster ended the job: {why}"))
        return Exited(end.code, last_words(self._lines or plain))

    def _deleted(self) -> Exited:
        return Exited(None, f"the Job {self._name} was deleted")

    async def _read(self, pod: dict[str, Any]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        async for line in kubernetes_log.lines(self._api, name, CONTAINER, lambda: uid in self._ended, self._timing.poll_s):
            event = event_in(line)
            if event is None:
                self._lines.append(line)
            else:
                self._tell(event)

    async def _read_out(self) -> None:
        if self._readers:
            await asyncio.wait(self._readers.values(), timeout=_READ_OUT_S)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._failed_at = self._failed_at or time.monotonic()
        elif isinstance(event, Started):
            self._failed_at = None  # of the pod before this one, which was evicted at the same time
        self._told.put_nowait(event)

    def _note(self, what: str, why: str) -> None:
        """Logs it once, however often it is seen."""
        if why not in self._noted:
            self._noted.add(why)
            _log.warning(what, job=self._name, why=why)
