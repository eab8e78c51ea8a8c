"""What is heard of a job on Kubernetes: events, waits and ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from trainer_place import JOB, REPORT, opened, step, until

from services.trainer import kubernetes_run
from services.trainer.domain import (
    DatasetRead,
    Exited,
    Failed,
    Interrupted,
    Started,
)


async def test_a_job_is_followed_to_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        pod = await place.cluster.pod(JOB)
        pod.start()
        await pod.say("loading", Started(1), DatasetRead(REPORT), "50%|xx" + "x" * 70_000, step(1))
        await heard.until(Started(1), DatasetRead(REPORT), step(1))
        # A bar without an end of line stands before what comes next.
        await pod.say(step(2))
        time, line = pod.lines[-1]
        pod.lines[-1] = (time, f"60%|xxx {line}")
        await heard.until(step(1), step(2))
        await pod.say(step(3))
        await pod.end(0)
        place.cluster.finish(JOB, "Complete")
        assert (await heard.end())[2:] == [step(1), step(2), step(3), Exited(0, "loading | 50%|xx" + "x" * 294)]
        assert place.cluster.count("POST", "/jobs") == 1
        assert place.cluster.count("POST", "/services") == 0
        assert place.cluster.count("DELETE", "") == 0


async def test_a_failure_is_told_in_the_words_of_the_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        pod = (await place.cluster.pod(JOB)).start()
        await pod.say(Started(1), "Traceback", "ValueError: no", Failed("lower it"))
        await pod.end(42)
        place.cluster.finish(JOB, "Failed", "PodFailurePolicy", "Container trainer failed with exit code 42")
        assert await heard.end() == [Started(1), Failed("lower it"), Exited(42, "Traceback | ValueError: no")]


async def test_a_failure_is_told_also_where_the_log_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_run, "_READ_OUT_S", 0.2)
    async with opened(tmp_path) as place:
        place.cluster.denied = {"get pods/log"}
        heard = await place.launch()
        pod = (await place.cluster.pod(JOB)).start()
        await pod.end(42, message='ValueError: no\ntunetrial-event: {"error":"lower it","kind":"failed"}\n')
        place.cluster.finish(JOB, "Failed", "PodFailurePolicy")
        assert await heard.end() == [Failed("lower it"), Exited(42, "ValueError: no")]


async def test_a_process_that_is_killed_is_told_by_its_code(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        for _ in range(2):
            pod = (await place.cluster.pod(JOB)).start()
            await pod.say(Started(1), "Killed")
            await heard.until(Started(1))
            await pod.end(137)
        place.cluster.finish(JOB, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        assert await heard.end() == [Started(1), Started(1), Exited(137, "Killed | Killed")]


async def test_a_log_that_breaks_off_goes_on_where_it_broke(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        pod = await place.cluster.pod(JOB)
        pod.cut_after = 230  # in the middle of the second event
        await pod.say(*(step(number) for number in range(1, 8)))
        pod.start()
        await heard.until(*(step(number) for number in range(1, 8)))
        pod.log_faults = 2
        # A connection that ends although the process runs.
        async with pod.changed:
            pod.cut_after = 0
            pod.changed.notify_all()
        await pod.say(step(8), step(9))
        await heard.until(step(8), step(9))
        await pod.say(step(10))
        await pod.end(0)
        place.cluster.finish(JOB, "Complete")
        assert await heard.end() == [*(step(number) for number in range(1, 11)), Exited(0)]


async def test_a_pod_that_was_evicted_is_followed_by_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        first = (await place.cluster.pod(JOB)).start()
        await first.say(step(4, checkpoint=4), Interrupted())
        await heard.until(step(4, checkpoint=4), Interrupted())
        await first.delete()
        del place.cluster.pods[f"{JOB}-1"]
        second = (await place.cluster.pod(JOB)).start()
        await second.say(step(5, checkpoint=4))
        await second.end(0)
        place.cluster.finish(JOB, "Complete")
        assert await heard.end() == [step(4, checkpoint=4), Interrupted(), step(5, checkpoint=4), Exited(0)]


async def test_an_image_that_cannot_be_pulled_ends_the_job_after_a_while(tmp_path: Path) -> None:
    async with opened(tmp_path, start_timeout_s=0.3) as place:
        with capture_logs() as logs:
            heard = await place.launch()
            pod = await place.cluster.pod(JOB)
            pod.wait("ContainerCreating")
            await asyncio.sleep(0.1)
            pod.wait("ImagePullBackOff", 'Back-off pulling image "trainer:1"')
            failed, exited = await heard.end()
        assert isinstance(failed, Failed)
        assert 'its pod cannot start: ImagePullBackOff Back-off pulling image "trainer:1"' in failed.error
        assert "start_timeout_s" in failed.error
        assert exited == Exited(None)
        await until(lambda: not place.cluster.jobs)
        assert len([log for log in logs if log["event"] == "a job waits"]) == 1


async def test_a_job_awaits_room_for_as_long_as_it_takes(tmp_path: Path) -> None:
    async with opened(tmp_path, start_timeout_s=0.1, queue="trials") as place:
        with capture_logs() as logs:
            heard = await place.launch()
            await asyncio.sleep(0.2)
            place.cluster.jobs[JOB]["spec"]["suspend"] = False
            place.cluster.warnings[place.cluster.jobs[JOB]["metadata"]["uid"]] = 'pods "x" is forbidden: exceeded quota: small'
            await until(lambda: any("exceeded quota" in log.get("why", "") for log in logs))
            pod = await place.cluster.pod(JOB)
            pod.unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
            await asyncio.sleep(0.3)
            pod.start()
            await pod.say(step(1))
            await pod.end(0)
            place.cluster.finish(JOB, "Complete")
            assert await heard.end() == [step(1), Exited(0)]
        assert [log["why"] for log in logs if log["event"] == "a job waits"] == [
            "Kueue has not let it in: queue trials",
            'FailedCreate: pods "x" is forbidden: exceeded quota: small',
            "no node takes its pod: Unschedulable 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        ]


async def test_a_job_that_the_cluster_ends_fails_in_the_clusters_words(tmp_path: Path) -> None:
    async with opened(tmp_path, active_deadline_s=1) as place:
        heard = await place.launch()
        pod = await place.cluster.pod(JOB)
        pod.unschedulable("no room")
        await asyncio.sleep(0.1)
        place.cluster.finish(JOB, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        failed, exited = await heard.end()
        assert isinstance(failed, Failed)
        assert "DeadlineExceeded Job was active longer than specified deadline" in failed.error
        assert "no room" in failed.error
        assert exited == Exited(None)


async def test_a_job_that_somebody_deletes_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        heard = await place.launch()
        del place.cluster.jobs[JOB]
        assert await heard.end() == [Exited(None, f"the Job {JOB} was deleted")]


async def test_a_failure_under_torchrun_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_run, "_END_S", 0.1)
    async with opened(tmp_path, nodes=2) as place:
        heard = await place.launch()
        assert place.cluster.services[JOB]["metadata"]["ownerReferences"][0]["uid"] == place.cluster.jobs[JOB]["metadata"]["uid"]
        first, second = await place.cluster.pod(JOB, index=0), await place.cluster.pod(JOB, index=1)
        for pod in (first, second):
            pod.start()
        await second.say("a node that is not listened to", step(9))
        await first.say(Failed("lower it"))
        await first.end(1)  # torchrun's own code
        assert await heard.end() == [Failed("lower it"), Exited(None)]
        await until(lambda: not place.cluster.jobs)


async def test_of_several_nodes_the_first_that_failed_is_to_blame(tmp_path: Path) -> None:
    async with opened(tmp_path, nodes=2) as place:
        heard = await place.launch()
        first, second = await place.cluster.pod(JOB, index=0), await place.cluster.pod(JOB, index=1)
        for pod in (first, second):
            pod.start()
        await second.end(137, finished_at="2026-01-01T00:00:01Z", message="Killed")
        await first.end(1, finished_at="2026-01-01T00:00:09Z", message="NCCL")
        place.cluster.finish(JOB, "Failed", "BackoffLimitExceeded")
        assert await heard.end() == [Exited(137, "Killed")]
