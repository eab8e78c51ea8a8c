"""A training of two nodes at once: an Indexed Job whose pods find each other by its headless Service."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
from tunetrial.trainer.v1 import trainer_pb2
from tunetrial.trainer.v1.trainer_pb2 import TrainingJob, TrainingSpec

from services.trainer.domain import Interrupted
from tests.contract.trainer.test_trainer_service import Trainer
from tests.kubernetes.place import JOBS, SERVICES, SPOT, Place, Told, until

pytestmark = pytest.mark.timeout(900)

SUCCEEDED = trainer_pb2.JOB_STATE_SUCCEEDED
COMPARED = 30
"""Steps; later ones are as alike, but for what rounding makes of them."""


def spec(trainer: Trainer, name: str) -> TrainingSpec:
    """Without dropout, of which each process has its own."""
    given = trainer.spec(name, max_steps=120, micro_batch_size=2, learning_rate=1e-2)
    given.sft.lora.dropout = 0
    return given


@pytest.fixture(scope="module")
async def pair(place: Place) -> AsyncIterator[Trainer]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # A pod that loses the other one dies by its own fault, as the cluster counts.
    async with place.trainer("pair", nodes=2, master_port=port, backoff_limit=2) as pair:
        yield pair


@pytest.fixture(scope="module")
async def together(pair: Trainer) -> TrainingJob:
    """A job of two nodes that nothing disturbed."""
    ended = await pair.end(await pair.create(spec(pair, "together")))
    assert (ended.state, ended.error) == (SUCCEEDED, "")
    return ended


async def test_two_nodes_give_the_loss_curve_of_one(place: Place, trainer: Trainer, pair: Trainer, together: TrainingJob) -> None:
    made = await place.job(together)
    assert (made["spec"]["completionMode"], made["status"]["completedIndexes"]) == ("Indexed", "0,1")
    assert {pod["spec"]["nodeName"] for pod in await place.pods(together)} == {"gpu-0", "gpu-1"}
    (service,) = await place.api.items(SERVICES, labelSelector=f"tunetrial.dev/job={together.id}")
    assert service["spec"]["clusterIP"] == "None"
    alone = await trainer.end(await trainer.create(spec(trainer, "alone")))
    assert (alone.state, alone.error) == (SUCCEEDED, "")
    adapters = await trainer.adapter("alone"), await pair.adapter("together")
    assert adapters[0].trained_tokens == adapters[1].trained_tokens
    expected = losses(place.told(alone))
    assert len(expected) == COMPARED
    assert losses(place.told(together)) == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in expected]


async def test_when_one_of_two_nodes_is_reclaimed_both_save_and_go_on(place: Place, pair: Trainer, together: TrainingJob) -> None:
    job = await pair.create(spec(pair, "halved"))
    await pair.training(job, with_checkpoint=True)
    await place.add_node("gpu-2")
    await place.taint("gpu-0", SPOT)
    ended = await pair.end(job)
    assert (ended.state, ended.error) == (SUCCEEDED, "")
    told = place.told(job)
    assert {pod.node for pod in told[:2]} == {"gpu-0", "gpu-1"}
    assert {pod.node for pod in told[2:]} == {"gpu-1", "gpu-2"}
    assert any(Interrupted() in pod.events for pod in told[:2])
    assert max(pod.steps[0].checkpoint_step for pod in told[2:] if pod.steps) > 0
    assert (await pair.adapter("halved")).weights_sha256 == (await pair.adapter("together")).weights_sha256
    await place.taint("gpu-0")
    await place.remove_node("gpu-2")


async def test_the_service_goes_with_its_job(place: Place, together: TrainingJob) -> None:
    await place.api.patch(f"{JOBS}/tunetrial-{together.id}", {"spec": {"ttlSecondsAfterFinished": 0}})
    await until(lambda: place.gone(together))


def losses(told: list[Told]) -> list[tuple[int, float]]:
    """By step, as one of the pods told them."""
    (found,) = [steps for pod in told if (steps := {one.step: one.loss for one in pod.steps if one.loss is not None})]
    return sorted(found.items())[:COMPARED]
