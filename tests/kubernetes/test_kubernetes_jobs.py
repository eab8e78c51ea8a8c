"""A training as a Job of a real cluster: where it runs, how it waits, that it is followed, adopted and cleared away."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tunetrial.trainer.v1 import trainer_pb2

from tests.contract.trainer.test_trainer_service import LONG, Trainer, failure
from tests.kubernetes.place import JOBS, OTHERS, QUOTAS, STEPS, Place, Undisturbed, cancel, course, until, waited_for

pytestmark = pytest.mark.timeout(900)

SUCCEEDED = trainer_pb2.JOB_STATE_SUCCEEDED


async def test_a_job_trains_on_a_gpu_node_and_goes_when_its_time_is_over(place: Place, undisturbed: Undisturbed) -> None:
    steps = [change.progress.step for change in undisturbed.seen]
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    job, adapter = undisturbed.seen[-1], undisturbed.adapter
    assert (job.state, job.error, job.progress.step, job.progress.step_count) == (SUCCEEDED, "", STEPS, STEPS)
    weights = (Path(adapter.uri) / "adapter_model.safetensors").read_bytes()
    assert (adapter.weights_sha256, adapter.job_id) == (hashlib.sha256(weights).hexdigest(), job.id)
    (pod,) = await place.pods(job)
    assert pod["spec"]["nodeName"] in ("gpu-0", "gpu-1")
    assert pod["status"]["phase"] == "Succeeded"
    # A day after its end the cluster removes it, unless it is told to do so at once.
    assert (await place.job(job))["spec"]["ttlSecondsAfterFinished"] == 86_400
    await place.api.patch(f"{JOBS}/tunetrial-{job.id}", {"spec": {"ttlSecondsAfterFinished": 0}})
    await until(lambda: place.gone(job))


async def test_a_job_waits_for_a_gpu_says_so_and_starts_when_there_is_one(place: Place, trainer: Trainer) -> None:
    taken = {await place.occupy(name) for name in ("first", "second")}
    assert taken == {"gpu-0", "gpu-1"}
    job = await trainer.create(trainer.spec("patient"))

    async def told() -> bool:
        return bool(waited_for(trainer, job))

    await until(told)
    assert f"no node takes its pod: Unschedulable 0/{len(place.nodes)} nodes are available" in waited_for(trainer, job)[0]
    assert "2 Insufficient nvidia.com/gpu" in waited_for(trainer, job)[0]
    await place.add_node("gpu-2")
    ended = await trainer.end(job)
    assert (ended.state, ended.error) == (SUCCEEDED, "")
    assert [pod.node for pod in place.told(job)] == ["gpu-2"]
    for name in ("first", "second"):
        await place.api.delete(f"{OTHERS}/{name}")
    await place.remove_node("gpu-2")


async def test_a_cancelled_job_leaves_no_job_no_pod_and_no_file(place: Place, trainer: Trainer) -> None:
    before = trainer.checkpoints()
    job = await trainer.create(trainer.spec("cancelled", max_steps=LONG))
    await trainer.training(job, with_checkpoint=True)
    (pod,) = await place.pods(job)
    container = place.nodes[pod["spec"]["nodeName"]].pods[pod["metadata"]["name"]]
    assert (await cancel(trainer, job)).state == trainer_pb2.JOB_STATE_CANCELLED
    await until(lambda: place.gone(job))
    assert container.exit_code is not None
    assert (await failure(trainer.adapter("cancelled")))[1] == "ADAPTER_NOT_FOUND"
    assert not trainer.checkpoints() - before
    assert not [path for path in (trainer.root / "data" / "adapters").glob("*") if path.name.startswith((".", "cancelled"))]


async def test_after_kill_9_of_the_trainer_its_job_trains_on_and_is_found_again(place: Place, undisturbed: Undisturbed) -> None:
    async with place.trainer("adopting") as first:
        job = await first.create(course(first, "adopted"), "adopted")
        step = (await first.training(job)).progress.step
        (pod,) = await place.pods(job)
        first.process.kill()
        await first.process.wait()
    assert step < STEPS
    async with place.trainer("adopting") as second:
        assert (await second.create(course(second, "adopted"), "adopted")).id == job.id
        ended = await second.end(job)
        assert (ended.state, ended.error) == (SUCCEEDED, "")
        (same,) = await place.pods(job)
        assert same["metadata"]["uid"] == pod["metadata"]["uid"]
        assert (await second.adapter("adopted")).weights_sha256 == undisturbed.adapter.weights_sha256


async def test_a_claim_that_is_not_there_is_named(place: Place) -> None:
    volumes = [{"mount_path": str(place.folder), "claim": "nowhere"}]
    async with place.trainer("lost", volumes=volumes) as trainer:
        job = await trainer.create(trainer.spec("claiming"))

        async def told() -> bool:
            return any('persistentvolumeclaim "nowhere" not found' in why for why in waited_for(trainer, job))

        await until(told)
        await cancel(trainer, job)
        await until(lambda: place.gone(job))


async def test_a_quota_that_is_used_up_is_named(place: Place, trainer: Trainer) -> None:
    await place.api.create(QUOTAS, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})

    async def in_force() -> bool:
        return bool((await place.api.get(f"{QUOTAS}/none")).get("status", {}).get("hard"))

    await until(in_force)
    job = await trainer.create(trainer.spec("modest"))

    async def told() -> bool:
        return any("FailedCreate" in why and "exceeded quota: none" in why for why in waited_for(trainer, job))

    await until(told)
    await place.api.delete(f"{QUOTAS}/none")
    await cancel(trainer, job)
    await until(lambda: place.gone(job))
