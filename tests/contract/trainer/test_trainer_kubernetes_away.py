"""Jobs on Kubernetes when somebody goes away, says no, or wants no more of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from test_trainer_service import running
from trainer_cluster import NAMESPACE, cluster_in
from trainer_place import ID, JOB, REPORT, THE_ORDER, Heard, opened, step, until
from tunetrial.trainer.v1 import trainer_pb2

from services.common.errors import FailedPrecondition
from services.trainer.domain import DatasetRead, Exited, Failed
from services.trainer.kubernetes_launcher import PodAdapters
from services.trainer.manifest import AdapterFiles
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows


async def test_a_cancelled_job_is_deleted_with_its_pods(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        pod = (await place.cluster.pod(JOB)).start()
        await pod.say(step(1))
        await heard.until(step(1))
        await heard.run.stop()
        assert not place.cluster.jobs
        assert not place.cluster.pods
        assert isinstance((await heard.end())[-1], Exited)
        job, gone = place.cluster.bodies
        assert job["propagationPolicy"] == "Foreground"
        assert gone["gracePeriodSeconds"] == 1


async def test_cancelling_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        place.launcher._timing = replace(place.launcher._timing, stop_s=0.3)
        heard = await place.launch()
        (await place.cluster.pod(JOB)).start()
        place.cluster.deaf = True
        with capture_logs() as logs:
            await heard.run.stop()
        assert await heard.end() == [Exited(None)]
        assert [log["event"] for log in logs] == ["a cancelled job's pods take long to end"]


async def test_a_job_that_is_cancelled_while_the_api_is_away_is_deleted_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        place.cluster.away = 8
        await heard.run.stop()
        assert not place.cluster.jobs


async def test_a_launch_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        place.cluster.lost_answers = 1000
        place.cluster.denied = set()
        launching = asyncio.create_task(place.launcher.launch(THE_ORDER))
        await place.cluster.job(JOB)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        await until(lambda: not place.cluster.jobs)


async def test_a_service_that_restarts_finds_its_job_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        pod = (await place.cluster.pod(JOB)).start()
        await pod.say(step(1))
        await heard.until(step(1))
        adapters = PodAdapters(tmp_path / "adapters", place.launcher)
        half = tmp_path / "adapters" / f".partial-{ID}-1"
        half.mkdir(parents=True)
        place.launcher.leave()
        await heard.run.leave()
        assert await heard.end() == [step(1), Exited(None)]
        adapters.discard_partial(ID)
        async with place.restarted() as launcher:
            PodAdapters(tmp_path / "adapters", launcher).discard_partial()
            # What a pod writes stays while it may be at it.
            assert half.exists()
            again = Heard(await launcher.launch(THE_ORDER))
            await pod.say(step(2))
            await again.until(step(1), step(2))
            await pod.end(0)
            place.cluster.finish(JOB, "Complete")
            assert await again.end() == [step(1), step(2), Exited(0)]
            PodAdapters(tmp_path / "adapters", launcher).discard_partial(ID)
            assert not half.exists()
        assert len(place.cluster.jobs) == 1
        assert place.cluster.count("DELETE", "") == 0


async def test_the_service_itself_goes_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(3))
    given = {"namespace": NAMESPACE, "image": "trainer:1", "volumes": [{"mount_path": str(tmp_path), "claim": "data"}]}
    async with cluster_in(tmp_path) as (cluster, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        async with running(tmp_path, KUBERNETES=json.dumps(given)) as first:
            job = await first.create(first.spec("one"))
            pod = (await cluster.pod(f"tunetrial-{job.id}")).start()
            await pod.say(DatasetRead(REPORT), step(3))
            assert (await first.training(job)).dataset.example_count == 3
        assert list(cluster.jobs) == [f"tunetrial-{job.id}"]
        async with running(tmp_path, KUBERNETES=json.dumps(given)) as second:
            assert (await second.training(job)).progress.step == 3
            await pod.say(Failed("lower it"))
            await pod.end(42)
            cluster.finish(f"tunetrial-{job.id}", "Failed", "PodFailurePolicy")
            ended = await second.end(job)
            assert (ended.state, ended.error) == (trainer_pb2.JOB_STATE_FAILED, "lower it")
            other = await second.create(second.spec("two"))
            await cluster.job(f"tunetrial-{other.id}")
            cancel = second.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=other.id), timeout=30)
            assert (await cancel).job.state == trainer_pb2.JOB_STATE_CANCELLED
            assert list(cluster.jobs) == [f"tunetrial-{job.id}"]
        assert cluster.count("DELETE", "/jobs") == 1


async def test_a_job_that_was_running_is_ended_also_where_the_next_service_has_no_slot_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(3))
    given = {"namespace": NAMESPACE, "image": "trainer:1", "volumes": [{"mount_path": str(tmp_path), "claim": "data"}]}
    async with cluster_in(tmp_path) as (cluster, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        async with running(tmp_path, KUBERNETES=json.dumps(given), SLOTS="2") as first:
            jobs = [await first.create(first.spec(name)) for name in ("one", "two")]
            for job in jobs:
                await (await cluster.pod(f"tunetrial-{job.id}")).start().say(DatasetRead(REPORT), step(3))
                await first.training(job)
        async with running(tmp_path, KUBERNETES=json.dumps(given), SLOTS="1") as second:
            await second.training(jobs[0])
            cancel = second.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=jobs[1].id), timeout=30)
            assert (await cancel).job.state == trainer_pb2.JOB_STATE_CANCELLED
            await until(lambda: list(cluster.jobs) == [f"tunetrial-{jobs[0].id}"])


async def test_a_job_that_is_cancelled_while_the_service_ends_is_deleted_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        place.launcher.leave()
        await heard.run.stop()
        assert not place.cluster.jobs


async def test_a_job_is_deleted_also_where_its_pods_may_not_be(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        place.launcher._timing = replace(place.launcher._timing, stop_s=0.3)
        place.cluster.denied = {"delete pods"}
        heard = await place.launch()
        (await place.cluster.pod(JOB)).start()
        with capture_logs() as logs:
            await heard.run.stop()
        assert "deletionTimestamp" in place.cluster.jobs[JOB]["metadata"]
        (said,) = [log for log in logs if log["event"] == "the pods of a deleted job take their own time to end"]
        assert "let the trainer delete pods" in said["error"]


async def test_a_job_that_ended_while_nobody_looked_tells_its_end_once_and_is_then_made_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        await place.launcher.launch(THE_ORDER)
        pod = (await place.cluster.pod(JOB)).start()
        async with place.restarted() as launcher:
            await pod.say(step(5, checkpoint=4))
            await pod.end(137)
            place.cluster.finish(JOB, "Failed", "BackoffLimitExceeded")
            before = place.cluster.jobs[JOB]["metadata"]["uid"]
            assert await Heard(await launcher.launch(THE_ORDER)).end() == [step(5, checkpoint=4), Exited(137)]
            # The queue wants another attempt, because that one got further.
            again = Heard(await launcher.launch(THE_ORDER))
            assert place.cluster.jobs[JOB]["metadata"]["uid"] != before
            assert place.cluster.jobs[JOB]["status"] == {}
            await again.run.stop()


async def test_an_api_that_is_away_for_a_while_ends_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        place.cluster.away = 3
        place.cluster.lost_answers = 1
        heard = await place.launch()
        assert len(place.cluster.jobs) == 1
        pod = (await place.cluster.pod(JOB)).start()
        await pod.say(step(1))
        await heard.until(step(1))
        place.cluster.away = 20
        await asyncio.sleep(0.3)
        await pod.say(step(2))
        await pod.end(0)
        place.cluster.finish(JOB, "Complete")
        assert await heard.end() == [step(1), step(2), Exited(0)]


@pytest.mark.parametrize(
    ("denied", "nodes", "why"),
    [
        ("create jobs", 1, r"let the trainer create jobs in namespace trial.*cannot create resource \"jobs\".*lacks that right"),
        ("list pods", 1, r"let the trainer list pods.*lacks that right"),
        ("create services", 2, r"let the trainer create services.*lacks that right"),
    ],
)
async def test_a_right_that_is_missing_is_named(tmp_path: Path, denied: str, nodes: int, why: str) -> None:
    async with opened(tmp_path, nodes=nodes) as place:
        place.cluster.denied = {denied}
        with pytest.raises(FailedPrecondition, match=why) as failed:
            await place.launcher.launch(THE_ORDER)
        assert failed.value.reason == "KUBERNETES_REFUSED"
        await until(lambda: not place.cluster.jobs)


async def test_a_job_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        place.cluster.jobs[JOB] = {"metadata": {"name": JOB, "uid": "other", "labels": {"app": "other"}}, "spec": {}, "status": {}}
        with pytest.raises(FailedPrecondition, match=f"the Job {JOB} in namespace trial was not made by this trainer") as failed:
            await place.launcher.launch(THE_ORDER)
        assert failed.value.reason == "KUBERNETES_NAME_TAKEN"
        await asyncio.sleep(0.1)
        assert place.cluster.jobs[JOB]["metadata"]["uid"] == "other"
        assert place.cluster.count("DELETE", "") == 0


def test_adapters_of_this_machine_are_cleared_as_ever(tmp_path: Path) -> None:
    half = tmp_path / ".partial-x-1"
    half.mkdir()
    AdapterFiles(tmp_path).discard_partial()
    assert not half.exists()
