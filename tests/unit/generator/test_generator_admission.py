"""Who gets into an engine, and who waits."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.common.errors import ResourceExhausted
from services.generator.admission import Admission


class Doors:
    """Callers who go in and stay until they are let out; `entered` says in which order they came in."""

    def __init__(self, capacity: int, queue_limit: int = 100) -> None:
        self.admission = Admission("base", capacity, queue_limit)
        self.entered: list[str] = []
        self._outs: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, caller: str, *, patient: bool = False) -> None:
        self._outs[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, caller, patient))
        for _ in range(3):
            await asyncio.sleep(0)

    async def _stay(self, name: str, caller: str, patient: bool) -> None:
        async with self.admission.enter(caller, patient=patient):
            self.entered.append(name)
            await self._outs[name].wait()

    async def leave(self, name: str) -> None:
        self._outs[name].set()
        await self.tasks[name]
        for _ in range(3):
            await asyncio.sleep(0)


async def test_callers_take_turns_however_much_one_of_them_asks() -> None:
    doors = Doors(1)
    await doors.come("first", "busy")
    for number in range(5):
        await doors.come(f"busy {number}", "busy")
    await doors.come("a", "modest")
    await doors.come("b", "modest")
    for name in ("first", "busy 0", "a", "busy 1", "b", "busy 2"):
        assert doors.entered[-1] == name
        await doors.leave(name)
    assert doors.entered == ["first", "busy 0", "a", "busy 1", "b", "busy 2", "busy 3"]
    assert (doors.admission.running_count, doors.admission.waiting_count) == (1, 1)


async def test_the_impatient_are_refused_when_so_many_wait_and_the_patient_do_not_count() -> None:
    doors = Doors(1, queue_limit=1)
    await doors.come("in", "x")
    for number in range(4):
        await doors.come(f"patient {number}", "y", patient=True)
    await doors.come("waits", "z")
    await doors.come("refused", "z")
    with pytest.raises(ResourceExhausted) as refused:
        await doors.tasks["refused"]
    assert (refused.value.reason, refused.value.metadata["retry_after_s"]) == ("QUEUE_FULL", "1")
    assert doors.admission.waiting_count == 5


async def test_who_goes_away_leaves_no_hole() -> None:
    doors = Doors(1)
    await doors.come("in", "x")
    await doors.come("gone", "y")
    await doors.come("next", "z")
    doors.tasks["gone"].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await doors.tasks["gone"]
    await doors.leave("in")
    assert doors.entered == ["in", "next"]
    await doors.leave("next")
    assert (doors.admission.running_count, doors.admission.waiting_count) == (0, 0)


async def test_a_place_given_to_somebody_who_goes_in_the_same_moment_is_given_on() -> None:
    doors = Doors(1)
    await doors.come("in", "x")
    await doors.come("called", "y")
    await doors.come("next", "z")
    doors._outs["in"].set()
    await doors.tasks["in"]  # its place is handed to `called`, which has not run yet
    doors.tasks["called"].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await doors.tasks["called"]
    for _ in range(3):
        await asyncio.sleep(0)
    assert doors.entered[-1] == "next"
    await doors.leave("next")
    assert (doors.admission.running_count, doors.admission.waiting_count) == (0, 0)
