"""A control plane a worker, with four nodes: two in the pool of GPUs that Jobs ask for, one of another pool, and one without a GPU."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tunetrial.trainer.v1 import trainer_pb2

from tests.contract.trainer.test_trainer_service import Trainer
from tests.kubernetes.place import Place, Undisturbed, course, open_place


@pytest.fixture(scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with open_place(tmp_path_factory.mktemp("kubernetes")) as place:
        await place.add_node("gpu-0")
        await place.add_node("gpu-1")
        await place.add_node("old-0", labels={"pool": "old"})
        await place.add_node("cpu-0", gpus=0)
        yield place


@pytest.fixture(scope="session")
async def trainer(place: Place) -> AsyncIterator[Trainer]:
    async with place.trainer("trainer") as trainer:
        yield trainer


@pytest.fixture(scope="session")
async def undisturbed(trainer: Trainer) -> Undisturbed:
    job = await trainer.create(course(trainer, "undisturbed"))
    seen = [change async for change in trainer.watch(job)]
    assert seen[-1].state == trainer_pb2.JOB_STATE_SUCCEEDED, seen[-1].error
    return Undisturbed(seen, await trainer.adapter("undisturbed"))
