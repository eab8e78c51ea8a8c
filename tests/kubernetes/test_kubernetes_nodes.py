"""Nodes that are taken away under a training: what comes of it is what would have come of it undisturbed."""

from __future__ import annotations

import pytest
from tunetrial.trainer.v1 import trainer_pb2
from tunetrial.trainer.v1.trainer_pb2 import TrainingJob

from services.trainer.domain import Interrupted
from services.trainer.job import INTERRUPTED
from tests.contract.trainer.test_trainer_service import Trainer
from tests.kubernetes.place import OTHERS, SPOT, Place, Told, Undisturbed, course, until, waited_for

pytestmark = pytest.mark.timeout(900)

SUCCEEDED = trainer_pb2.JOB_STATE_SUCCEEDED
FULL = {"key": "full", "effect": "NoSchedule"}


async def begun(place: Place, trainer: Trainer, name: str) -> tuple[TrainingJob, str]:
    """A training of the course that has a checkpoint, and the node it runs on."""
    job = await trainer.create(course(trainer, name))
    await trainer.training(job, with_checkpoint=True)
    (pod,) = await place.pods(job)
    return job, str(pod["spec"]["nodeName"])


async def ended_as(undisturbed: Undisturbed, trainer: Trainer, job: TrainingJob) -> None:
    """The job succeeds, with these weights."""
    ended = await trainer.end(job)
    assert (ended.state, ended.error) == (SUCCEEDED, "")
    assert (await trainer.adapter(ended.adapter)).weights_sha256 == undisturbed.adapter.weights_sha256


def assert_saved_and_went_on(first: Told, second: Told) -> None:
    """The first pod wrote down where it stood when it was told to end, and the second one went on there."""
    assert first.exit_code == INTERRUPTED
    assert first.events[-1] == Interrupted()
    saved = first.steps[-1]
    assert saved.checkpoint_step == saved.step > 0
    assert second.steps[0].step == second.steps[0].checkpoint_step == saved.step


async def test_a_node_that_is_reclaimed_lets_its_pod_save_and_another_goes_on(
    place: Place, trainer: Trainer, undisturbed: Undisturbed
) -> None:
    job, node = await begun(place, trainer, "reclaimed")
    await place.taint(node, SPOT)
    await ended_as(undisturbed, trainer, job)
    first, second = place.told(job)
    assert (first.node, second.node) == (node, "gpu-1" if node == "gpu-0" else "gpu-0")
    assert_saved_and_went_on(first, second)
    await place.taint(node)


async def test_a_job_makes_room_for_a_more_important_pod_and_goes_on_after_it(
    place: Place, trainer: Trainer, undisturbed: Undisturbed
) -> None:
    job, node = await begun(place, trainer, "modest")
    other = "gpu-1" if node == "gpu-0" else "gpu-0"
    await place.taint(other, FULL)
    await place.api.create("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": "important"}, "value": 1000})
    assert await place.occupy("important", "important") == node

    async def waits() -> bool:
        return bool(waited_for(trainer, job))

    await until(waits)
    assert len(place.told(job)) == 1
    await place.api.delete(f"{OTHERS}/important")
    await ended_as(undisturbed, trainer, job)
    first, second = place.told(job)
    assert first.node == second.node == node
    assert_saved_and_went_on(first, second)
    await place.taint(other)


async def test_a_node_that_is_lost_without_a_word_costs_what_was_done_since_the_last_checkpoint(
    place: Place, trainer: Trainer, undisturbed: Undisturbed
) -> None:
    job, node = await begun(place, trainer, "bereft")
    await place.remove_node(node)
    # The cluster waits a minute before it believes that the pod is gone.
    await ended_as(undisturbed, trainer, job)
    first, second = place.told(job)
    assert first.node == node != second.node
    assert Interrupted() not in first.events
    assert 0 < second.steps[0].step <= first.steps[-1].step + 1
    assert second.steps[0].step == second.steps[0].checkpoint_step
    await place.add_node(node)
