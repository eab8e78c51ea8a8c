"""The queue when adapters lie in a store: made by others, out of sight for a while, and never made twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from queue_parts import REPORT, House, spec_of

from services.common.errors import AlreadyExists, Unavailable
from services.trainer import adapter_shelf
from services.trainer.domain import Adapter, Exited, JobState
from services.trainer.records import work_hash


async def work_of(house: House, seed: int = 1) -> str:
    spec = spec_of(seed=seed)
    return work_hash(spec, await house.queue._inputs.read(spec))


async def test_what_another_trainer_made_of_the_same_work_is_the_job_s_result(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.adapters.publish("one", "theirs")
        house.adapters.works["one"] = await work_of(house)
        job = await house.queue.create(spec_of(), "request")
        assert (job.state, job.adapter, job.dataset) == (JobState.SUCCEEDED, "one", REPORT)
        assert (await house.queue.adapter("one")).job_id == "theirs"
        assert (await house.queue.create(spec_of(), "request")).id == job.id
        assert (await house.queue.create(spec_of(), "")).id == job.id
        with pytest.raises(AlreadyExists, match="is taken by other work"):
            await house.queue.create(spec_of(seed=2), "")
        assert not house.launcher.orders


async def test_a_job_that_another_trainer_was_quicker_than_has_its_result(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        run = await house.launched("one")
        house.adapters.publish("one", "theirs")
        house.adapters.works["one"] = await work_of(house)
        run.given.put_nowait(Exited(0))
        ended = await house.until(job, lambda seen: seen.state.ended)
        assert (ended.state, ended.adapter) == (JobState.SUCCEEDED, "one")


async def test_a_store_that_is_away_for_a_moment_when_a_job_ends_does_not_fail_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_shelf, "_RETRY_S", 0.01)
    async with House(tmp_path) as house:
        job = await house.queue.create(spec_of(), "")
        await house.launched("one")
        published, looks = house.adapters.published, []

        def away_at_first(name: str, job_id: str) -> Adapter | None:
            looks.append(name)
            if len(looks) < 3:
                raise Unavailable("STORE_UNAVAILABLE", "away")
            return published(name, job_id)

        monkeypatch.setattr(house.adapters, "published", away_at_first)
        assert (await house.succeed(job)).state is JobState.SUCCEEDED
        assert len(looks) == 3


async def test_nothing_is_created_while_nobody_can_say_whether_the_name_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with House(tmp_path) as house:

        def away(name: str) -> bool:
            raise Unavailable("STORE_UNAVAILABLE", "away")

        monkeypatch.setattr(house.adapters, "exists", away)
        with pytest.raises(Unavailable):
            await house.queue.create(spec_of(), "")
        jobs, _ = await house.queue.page(None, None, "")
        assert not jobs
