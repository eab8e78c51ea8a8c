"""Work of concurrent callers done together: order, size, errors, callers who go away."""

import asyncio
from collections.abc import Sequence

import pytest

from services.retriever.batching import Batching


class Work:
    """Squares numbers once it may, and keeps the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.may.wait()
        if 13 in items:
            raise ValueError("13")
        return [item * item for item in items]


async def started(*calls: asyncio.Task[list[int]]) -> None:
    """Every task has run up to where it waits."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_first_goes_at_once_and_the_others_gather_behind_it() -> None:
    work = Work()
    squares = Batching(work, largest=3, in_flight=1)
    calls = [asyncio.create_task(squares(n)) for n in range(6)]
    await started(*calls)
    assert work.batches == [[0]]
    work.may.set()
    assert await asyncio.gather(*calls) == [[n * n] for n in range(6)]
    assert work.batches == [[0], [1, 2, 3], [4, 5]]


async def test_items_of_one_caller_come_back_in_order_however_they_were_cut() -> None:
    work = Work()
    work.may.set()
    assert await Batching(work, largest=2, in_flight=2)(5, 4, 3, 2, 1) == [25, 16, 9, 4, 1]
    assert sorted(len(batch) for batch in work.batches) == [1, 2, 2]
    assert await Batching(work, largest=2, in_flight=1)() == []


async def test_no_more_batches_are_under_way_than_may_be() -> None:
    work = Work()
    squares = Batching(work, largest=1, in_flight=2)
    call = asyncio.create_task(squares(1, 2, 3, 4))
    await started(call)
    assert work.batches == [[1], [2]]
    work.may.set()
    assert await call == [1, 4, 9, 16]


async def test_a_failure_reaches_its_own_batch_only() -> None:
    work = Work()
    squares = Batching(work, largest=1, in_flight=1)
    calls = [asyncio.create_task(squares(n)) for n in (1, 13, 2)]
    work.may.set()
    good, bad, other = await asyncio.gather(*calls, return_exceptions=True)
    assert (good, other) == ([1], [4])
    with pytest.raises(ValueError, match="13"):
        raise bad  # type: ignore[misc]


async def test_a_caller_who_went_away_is_not_worked_for() -> None:
    work = Work()
    squares = Batching(work, largest=8, in_flight=1)
    first, gone, last = (asyncio.create_task(squares(n)) for n in (1, 2, 3))
    await started(first, gone, last)
    gone.cancel()
    await started(gone)
    work.may.set()
    assert (await first, await last) == ([1], [9])
    assert work.batches == [[1], [3]]
