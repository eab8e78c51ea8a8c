"""The service with an object store for adapters: a real server of the S3 protocol, that goes away, refuses, and loses its callers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_trainer_service import REPOSITORY, Trainer, failure, running
from tunetrial.trainer.v1 import trainer_pb2
from tunetrial.trainer.v1.trainer_pb2 import TrainingJob

from services.common.errors import AlreadyExists
from services.trainer.domain import Store
from services.trainer.manifest import AdapterFiles
from services.trainer.stored_adapters import StoredAdapters, Upload
from tests.contract.common.s3_server import BUCKET, S3, s3_server
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows

pytestmark = pytest.mark.timeout(1200)

URL = f"s3://{BUCKET}/adapters"
SUCCEEDED, FAILED = trainer_pb2.JOB_STATE_SUCCEEDED, trainer_pb2.JOB_STATE_FAILED
STEPS = 60


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def root_of(tmp_path: Path) -> Path:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(12))
    return tmp_path


def serving(root: Path, s3: S3, **settings: str) -> AbstractAsyncContextManager[Trainer]:
    given = {"ADAPTERS_URL": URL, "STORE_OPTIONS": json.dumps(s3.options), "STORE_PATIENCE_S": "600", "CHECKPOINT_S": "0.2"}
    return running(root, **given | settings)


@pytest.fixture(scope="module")
async def trainer(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trainer]:
    async with serving(root_of(tmp_path_factory.mktemp("trainer")), s3) as trainer:
        yield trainer


async def steps_of(trainer: Trainer, job: TrainingJob) -> tuple[TrainingJob, list[int]]:
    """How a job ends, and the steps that were seen on the way."""
    seen = [change async for change in trainer.watch(job)]
    return seen[-1], [change.progress.step for change in seen]


def manifest(s3: S3, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(s3.files().cat_file(f"{BUCKET}/adapters/{name}/manifest.json"))
    return found


def check_whole(s3: S3, name: str) -> dict[str, Any]:
    """The manifest of the one adapter under a name, of which every file is what the manifest says, and nothing else is there."""
    found = manifest(s3, name)
    contents = {path: s3.files().cat_file(f"{BUCKET}/adapters/{name}/{found['folder']}/{path}") for path in found["files"]}
    for path, content in contents.items():
        assert found["files"][path] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert found["weights_sha256"] == found["files"]["adapter_model.safetensors"]["sha256"]
    assert s3.objects(f"adapters/{name}") == sorted(["manifest.json", *(f"{found['folder']}/{path}" for path in contents)])
    return found


async def test_an_adapter_is_published_whole_and_found_again_after_a_restart(s3: S3, tmp_path: Path) -> None:
    root = root_of(tmp_path)
    async with serving(root, s3) as first:
        job = await first.end(await first.create(first.spec("one", max_steps=5)))
        assert (job.state, job.error) == (SUCCEEDED, "")
        adapter = await first.adapter("one")
        assert adapter.uri == f"{URL}/one"
        found = check_whole(s3, "one")
        assert (found["job_id"], found["folder"]) == (job.id, job.id)
        assert found["weights_sha256"] == adapter.weights_sha256
        assert {"README.md", "adapter_config.json", "manifest.json"} < set(found["files"])
        assert not list((root / "data" / "adapters").iterdir())
        assert not first.checkpoints()
        await first.end(await first.create(first.spec("two", max_steps=5)))
    async with serving(root, s3) as second:
        assert await second.adapter("one") == adapter
        assert (await second.create(second.spec("one", max_steps=5))).id == job.id
        list_of = trainer_pb2.ListAdaptersRequest
        listed = (await second.stub.ListAdapters(list_of(base="tiny"))).adapters
        assert [each.name for each in listed] == ["two", "one"]
        assert not (await second.stub.ListAdapters(list_of(base="other"))).adapters
        # One that somebody deleted is not there any more, and may be made anew.
        s3.files().rm(f"{BUCKET}/adapters/two", recursive=True)
        assert [each.name for each in (await second.stub.ListAdapters(list_of())).adapters] == ["one"]
        assert (await failure(second.adapter("two")))[:2] == (grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND")


async def test_a_job_that_is_killed_in_mid_upload_publishes_the_same_without_training_again(trainer: Trainer, s3: S3) -> None:
    # Beginnings of names that are put are those of the job's own folder; two of its files are there by then.
    killed = threading.Event()

    def kill() -> None:
        for process in trainer.training_processes():
            process.kill()
        killed.set()

    job = await trainer.create(trainer.spec("killed"))
    s3.door.at(f"PUT /{BUCKET}/adapters/killed/{job.id}/adapter_model.safetensors", kill)
    ended, steps = await steps_of(trainer, job)
    assert killed.is_set()
    assert (ended.state, ended.error) == (SUCCEEDED, "")
    last = steps.index(STEPS)
    assert not [step for step in steps[last:] if 0 < step < STEPS], "it trained again"
    found = check_whole(s3, "killed")
    undisturbed = await trainer.end(await trainer.create(trainer.spec("undisturbed")))
    assert undisturbed.state == SUCCEEDED
    assert found["weights_sha256"] == manifest(s3, "undisturbed")["weights_sha256"]


async def test_a_job_waits_for_a_store_that_is_away_for_a_while(trainer: Trainer, s3: S3) -> None:
    job = await trainer.create(trainer.spec("patient"))
    await trainer.training(job)
    s3.door.shut()
    async for seen in trainer.watch(job):
        if seen.progress.checkpoint_step == STEPS:
            break
    # All of it is trained and kept; nothing of it is there yet.
    assert not s3.objects("adapters/patient/manifest.json")
    assert (await failure(trainer.adapter("patient")))[1] in ("ADAPTER_NOT_FOUND", "STORE_UNAVAILABLE")
    s3.door.open()
    assert (await trainer.end(job)).state == SUCCEEDED
    check_whole(s3, "patient")


async def test_a_store_that_stays_away_fails_the_job_in_words_and_nothing_is_trained_twice(s3: S3, tmp_path: Path) -> None:
    async with serving(
        root_of(tmp_path),
        s3,
        STORE_PATIENCE_S="0",
    ) as trainer:
        job = await trainer.create(trainer.spec("late"))
        await trainer.training(job)
        s3.door.shut()
        try:
            failed = await trainer.end(job)
            assert failed.state == FAILED
            assert "the object store does not answer" in failed.error
            assert "What was trained is kept: created again, the same job publishes it without training" in failed.error
            code, reason, _ = await failure(trainer.create(trainer.spec("never")))
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        finally:
            s3.door.open()
        again = await trainer.create(trainer.spec("late"))
        assert again.id != job.id
        ended, steps = await steps_of(trainer, again)
        assert (ended.state, ended.error) == (SUCCEEDED, "")
        assert set(steps) <= {0, STEPS}
        assert ended.dataset.example_count == 12
        assert check_whole(s3, "late")["job_id"] == again.id


async def test_credentials_that_the_store_does_not_take_are_told_at_once(trainer: Trainer, s3: S3) -> None:
    with s3.knowing_nobody():
        code, reason, message = await failure(trainer.create(trainer.spec("refused")))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STORE_REFUSED")
    assert "look at the credentials" in message
    assert "hunter3" not in message


async def test_a_bucket_that_is_not_there_fails_a_job_before_its_first_step(s3: S3, tmp_path: Path) -> None:
    async with serving(root_of(tmp_path), s3, ADAPTERS_URL="s3://no-such-bucket/adapters") as trainer:
        ended, steps = await steps_of(trainer, await trainer.create(trainer.spec("nowhere")))
    assert (ended.state, ended.error) == (FAILED, "s3://no-such-bucket/adapters: there is no such bucket")
    assert set(steps) == {0}


async def test_the_same_job_of_another_trainer_is_given_the_adapter_that_is_there(trainer: Trainer, s3: S3, tmp_path: Path) -> None:
    first = await trainer.end(await trainer.create(trainer.spec("shared", max_steps=5)))
    before = s3.objects("adapters/shared")
    async with serving(root_of(tmp_path), s3) as other:
        job = await other.create(other.spec("shared", max_steps=5))
        assert (job.state, job.progress.step) == (SUCCEEDED, 0)
        assert (await other.adapter("shared")).job_id == first.id
        code, reason, _ = await failure(other.create(other.spec("shared", max_steps=6)))
        assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "ADAPTER_NAME_TAKEN")
    assert s3.objects("adapters/shared") == before


async def test_of_two_trainers_that_make_one_name_the_second_fails_and_changes_nothing(trainer: Trainer, s3: S3, tmp_path: Path) -> None:
    async with serving(root_of(tmp_path), s3) as other:
        mine, theirs = trainer.spec("contested", seed=1), other.spec("contested", seed=2)
        jobs = await asyncio.gather(trainer.create(mine), other.create(theirs))
        ended = await asyncio.gather(trainer.end(jobs[0]), other.end(jobs[1]))
    assert sorted(job.state for job in ended) == sorted((SUCCEEDED, FAILED))
    (won,) = [job for job in ended if job.state == SUCCEEDED]
    (lost,) = [job for job in ended if job.state == FAILED]
    assert f"exists already and is of other work (job {won.id}): choose another adapter_name" in lost.error
    assert check_whole(s3, "contested")["job_id"] == won.id


def test_of_many_uploads_at_once_one_becomes_visible(s3: S3, tmp_path: Path) -> None:
    store, begin = Store(URL, s3.options, 60.0), threading.Barrier(6)
    results: list[str] = []

    def upload(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"%d" % number)
        (folder / "manifest.json").write_text(json.dumps({"job_id": f"job{number}", "work": f"work{number // 2}"}))
        begin.wait()
        try:
            Upload(store, "raced", f"job{number}", f"work{number // 2}").publish(folder)
        except AlreadyExists:
            results.append("taken")
        else:
            results.append(f"work{number // 2}")

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Both jobs of the same work are content with what one of them made; the others are told.
    (work,) = set(results) - {"taken"}
    assert sorted(results) == sorted([work, work, "taken", "taken", "taken", "taken"])
    found = manifest(s3, "raced")
    assert found["work"] == work
    assert f"{found['folder']}/adapter_model.safetensors" in s3.objects("adapters/raced")
    there = s3.files().cat_file(f"{BUCKET}/adapters/raced/{found['folder']}/adapter_model.safetensors")
    assert found["folder"] == f"job{there.decode()}"


def test_what_is_half_uploaded_is_not_there_and_goes_with_the_next_upload(s3: S3, tmp_path: Path) -> None:
    s3.files().pipe_file(f"{BUCKET}/adapters/orphan/{'0af' * 10}12/adapter_model.safetensors", b"half")
    # What is not of a job is somebody else's.
    s3.files().pipe_file(f"{BUCKET}/adapters/orphan/rows/train.jsonl", b"{}")
    store = Store(URL, s3.options, 0.0)
    adapters = StoredAdapters(store, AdapterFiles(tmp_path))
    assert not adapters.exists("orphan")
    (tmp_path / "manifest.json").write_text(json.dumps({"job_id": "mine", "work": "work"}))
    Upload(store, "orphan", "mine", "work").publish(tmp_path)
    assert adapters.exists("orphan")
    assert s3.objects("adapters/orphan") == ["manifest.json", "mine/manifest.json", "rows/train.jsonl"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ADAPTERS_URL": "gs://bucket/adapters"}, "gs://bucket/adapters needs a library that is not there"),
        ({"ADAPTERS_URL": "nonsense://bucket"}, "nonsense://bucket cannot be opened"),
        ({"ADAPTERS_URL": URL, "STORE_OPTIONS": '{"secret": "hunter3"}'}, "secret: credentials belong into the variables"),
        ({"ADAPTERS_URL": URL, "STORE_OPTIONS": "[]"}, "expected a JSON object"),
    ],
)
def test_a_service_that_could_never_publish_does_not_start(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    given = {"DATA_DIR": str(tmp_path / "data"), "PORT": "0"} | settings
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos'}"}
    environment |= {f"TUNETRIAL_{name}": value for name, value in given.items()}
    done = subprocess.run(
        (sys.executable, "-m", "services.trainer"), check=False, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert "hunter3" not in done.stderr
