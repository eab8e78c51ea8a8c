"""Work done once for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from services.judge.memory import Memory


async def test_one_work_serves_all_and_its_account_goes_to_one() -> None:
    memory: Memory[str, int] = Memory(10)
    made: list[int] = []

    async def make() -> int:
        made.append(1)
        await asyncio.sleep(0.01)
        return 7

    results = await asyncio.gather(*(memory.get("k", make) for _ in range(5)))
    results.append(await memory.get("k", make))
    assert len(made) == 1
    assert [value for value, _ in results] == [7] * 6
    assert sum(first for _, first in results) == 1


async def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    memory: Memory[str, int] = Memory(10)
    outcomes: Iterator[int | ValueError] = iter([ValueError("no"), 3])

    async def make() -> int:
        await asyncio.sleep(0.01)
        outcome = next(outcomes)
        if isinstance(outcome, ValueError):
            raise outcome
        return outcome

    failed = await asyncio.gather(memory.get("k", make), memory.get("k", make), return_exceptions=True)
    assert [type(each) for each in failed] == [ValueError, ValueError]
    assert await memory.get("k", make) == (3, True)


async def test_work_goes_on_while_somebody_waits_and_stops_with_the_last() -> None:
    memory: Memory[str, int] = Memory(10)
    started, stopped, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def make() -> int:
        started.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            stopped.set()
            raise
        return 1

    one, other = (asyncio.create_task(memory.get("k", make)) for _ in range(2))
    await started.wait()
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    assert not stopped.is_set()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    await asyncio.wait_for(stopped.wait(), 5)
    release.set()
    assert await memory.get("k", make) == (1, True)


async def test_the_least_recently_used_is_forgotten_first() -> None:
    memory: Memory[str, str] = Memory(2)

    async def value_of(key: str) -> bool:
        async def make() -> str:
            return key

        return (await memory.get(key, make))[1]

    assert [await value_of(key) for key in "abacab"] == [True, True, False, True, False, True]
