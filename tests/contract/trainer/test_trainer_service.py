"""The service as a process with all its real parts, on a tiny base. Its first life ends by kill -9 in the middle of a job."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil  # type: ignore[import-untyped]  # the library ships no types
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from tunetrial.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from tunetrial.trainer.v1.trainer_pb2 import TrainingJob, TrainingSpec

from services.trainer.local_launcher import cuda_present
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows

pytestmark = pytest.mark.timeout(1200)

REPOSITORY = Path(__file__).parents[3]
LONG = 100_000
"""Steps of a job that is ended before it is done."""


@dataclass(frozen=True)
class Trainer:
    """A running service and how to talk to it."""

    root: Path
    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    stub: trainer_pb2_grpc.TrainerServiceAsyncStub

    def spec(self, name: str, seed: int = 1, **course: int | float | str) -> TrainingSpec:
        given = {"batch_size": 4, "max_steps": 60} | course
        sft = trainer_pb2.SupervisedFineTuning(
            lora=trainer_pb2.Lora(rank=2, dropout=0.1),
            optimization=trainer_pb2.Optimization(**given),  # type: ignore[arg-type]  # names and types belong together
        )
        return TrainingSpec(adapter_name=name, base="tiny", dataset_uri=str(self.root / "train.jsonl"), seed=seed, sft=sft)

    async def create(self, spec: TrainingSpec, request_id: str = "") -> TrainingJob:
        request = trainer_pb2.CreateTrainingJobRequest(spec=spec, request_id=request_id)
        return (await self.stub.CreateTrainingJob(request)).job

    async def watch(self, job: TrainingJob) -> AsyncIterator[TrainingJob]:
        async for response in self.stub.WatchTrainingJob(trainer_pb2.WatchTrainingJobRequest(id=job.id)):
            yield response.job

    async def end(self, job: TrainingJob) -> TrainingJob:
        return [seen async for seen in self.watch(job)][-1]

    async def training(self, job: TrainingJob, with_checkpoint: bool = False) -> TrainingJob:
        """The job once it has done a few steps, and has what it could go on from."""
        async for seen in self.watch(job):
            if seen.progress.step >= 3 and (seen.progress.checkpoint_step or not with_checkpoint):
                return seen
        raise AssertionError("the job ended before")

    async def adapter(self, name: str) -> trainer_pb2.Adapter:
        return (await self.stub.GetAdapter(trainer_pb2.GetAdapterRequest(name=name))).adapter

    def checkpoints(self) -> set[Path]:
        return set((self.root / "data" / "checkpoints").glob("*"))

    def training_processes(self) -> list[psutil.Process]:
        """Children of the warm process, which is the service's only child."""
        [warm] = psutil.Process(self.process.pid).children()
        return list(warm.children())


@contextlib.asynccontextmanager
async def running(root: Path, **settings: str) -> AsyncIterator[Trainer]:
    """Starts `python -m services.trainer` and stops it."""
    port_file = root / "port"
    port_file.unlink(missing_ok=True)
    given = {
        "PORT": "0",
        "PORT_FILE": str(port_file),
        "DATA_DIR": str(root / "data"),
        "URI_ROOTS": str(root),
        "MODELS": f"tiny={root}/base",
    }
    environment = {f"TUNETRIAL_{name}": value for name, value in (given | settings).items()}
    python_path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "protos")))
    with (root / "service.txt").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.trainer"),
            env={**os.environ, "PYTHONPATH": python_path, "OPENAI_API_KEY": "hunter2", "TUNETRIAL_DRAIN_S": "0", **environment},
            cwd=root, stderr=log,
        )  # fmt: skip
    try:
        while not port_file.exists():
            assert process.returncode is None, (root / "service.txt").read_text()
            await asyncio.sleep(0.05)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port_file.read_text()}") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            async for answer in health.Watch(health_pb2.HealthCheckRequest()):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            yield Trainer(root, process, channel, trainer_pb2_grpc.TrainerServiceStub(channel))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@dataclass(frozen=True)
class Killed:
    """What was there before the service was killed."""

    interrupted: TrainingJob
    waiting: TrainingJob
    survivors: list[psutil.Process]


@pytest.fixture(scope="session")
async def lives(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Trainer, Killed]]:
    """A service in its second life, and what the first one left. The first loads the libraries for each job, the second forks.

    Checkpoints come often, so that jobs have some to go on from.
    """
    root = tmp_path_factory.mktemp("trainer")
    make_base(root / "base")
    write_rows(root / "train.jsonl", questions(12))
    async with running(root, WARM_START="false", CHECKPOINT_S="0.1") as first:
        interrupted = await first.create(first.spec("interrupted", max_steps=300), "interrupted")
        waiting = await first.create(first.spec("waiting", max_steps=5), "waiting")
        assert (await first.training(interrupted, with_checkpoint=True)).progress.step < 300
        survivors = psutil.Process(first.process.pid).children(recursive=True)
        assert survivors
        first.process.kill()
        await first.process.wait()
    async with running(root, CHECKPOINT_S="0.2") as second:
        yield second, Killed(interrupted, waiting, survivors)


@pytest.fixture
def trainer(lives: tuple[Trainer, Killed]) -> Trainer:
    return lives[0]


async def failure(call: object) -> tuple[grpc.StatusCode, str, str]:
    """Status code, reason and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call  # type: ignore[misc]  # a call of any rpc
    status = rpc_status.from_call(error.value)  # type: ignore[arg-type]  # an AioRpcError has what is read of a call
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return error.value.code(), info.reason, status.message


async def test_after_kill_9_of_the_service_its_jobs_end_as_if_nothing_had_happened(lives: tuple[Trainer, Killed]) -> None:
    trainer, killed = lives
    gone, alive = psutil.wait_procs(killed.survivors, timeout=20)
    assert (len(gone), alive) == (len(killed.survivors), [])
    again = await trainer.create(trainer.spec("interrupted", max_steps=300), "interrupted")
    assert again.id == killed.interrupted.id
    ended = await trainer.end(killed.interrupted)
    assert ended.state == trainer_pb2.JOB_STATE_SUCCEEDED
    # It did not begin anew.
    assert ended.progress.checkpoint_step > 0
    assert (await trainer.end(killed.waiting)).state == trainer_pb2.JOB_STATE_SUCCEEDED
    undisturbed = await trainer.end(await trainer.create(trainer.spec("undisturbed", max_steps=300)))
    assert undisturbed.state == trainer_pb2.JOB_STATE_SUCCEEDED
    assert (await trainer.adapter("interrupted")).weights_sha256 == (await trainer.adapter("undisturbed")).weights_sha256


async def test_a_job_is_watched_from_start_to_adapter(trainer: Trainer) -> None:
    job = await trainer.create(trainer.spec("watched"))
    assert job.state in (trainer_pb2.JOB_STATE_QUEUED, trainer_pb2.JOB_STATE_RUNNING)
    assert job.spec.sft.lora.alpha == 4
    assert not job.spec.sft.optimization.HasField("epochs")
    seen = [change async for change in trainer.watch(job)]
    steps = [change.progress.step for change in seen]
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    last = seen[-1]
    assert (last.state, last.adapter, last.error) == (trainer_pb2.JOB_STATE_SUCCEEDED, "watched", "")
    assert (last.progress.step, last.progress.step_count) == (60, 60)
    assert last.progress.loss > 0
    assert last.progress.tokens_per_second > 0
    assert last.progress.gradient_norm > 0
    assert last.progress.HasField("learning_rate")
    assert last.progress.remaining_s == 0
    assert not last.progress.HasField("evaluation_loss")
    assert last.dataset.example_count == 12
    assert last.create_time.ToNanoseconds() <= last.start_time.ToNanoseconds() < last.end_time.ToNanoseconds()
    adapter = await trainer.adapter("watched")
    weights = Path(adapter.uri) / "adapter_model.safetensors"
    assert adapter.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert adapter.dataset_sha256 == hashlib.sha256((trainer.root / "train.jsonl").read_bytes()).hexdigest()
    assert (adapter.job_id, adapter.base, adapter.dataset) == (job.id, "tiny", last.dataset)
    assert adapter.trained_tokens > 0
    assert adapter.library_versions["peft"]
    listed = (await trainer.stub.ListAdapters(trainer_pb2.ListAdaptersRequest(base="tiny", page_size=1))).adapters
    assert list(listed) == [adapter]


async def test_a_full_job_makes_a_model_of_its_own_and_tells_its_evaluation_loss(trainer: Trainer) -> None:
    spec = trainer.spec("whole", max_steps=4)
    spec.evaluation_uri = spec.dataset_uri
    course = spec.sft.optimization
    course.ClearField("learning_rate")
    spec.full.optimization.CopyFrom(course)
    job = await trainer.create(spec)
    assert job.spec.full.optimization.learning_rate == 2e-5
    ended = await trainer.end(job)
    assert ended.state == trainer_pb2.JOB_STATE_SUCCEEDED, ended.error
    adapter = await trainer.adapter("whole")
    assert adapter.evaluation_loss == pytest.approx(ended.progress.evaluation_loss)
    weights = hashlib.sha256((Path(adapter.uri) / "model.safetensors").read_bytes()).hexdigest()
    assert adapter.weights_sha256 == hashlib.sha256(f"model.safetensors:{weights}\n".encode()).hexdigest()


async def test_the_same_work_is_not_done_twice(trainer: Trainer) -> None:
    job = await trainer.create(trainer.spec("once", max_steps=2), "once")
    assert (await trainer.create(trainer.spec("once", max_steps=2), "once")).id == job.id
    assert (await trainer.create(trainer.spec("once", max_steps=2, learning_rate=2e-4))).id == job.id
    assert (await failure(trainer.create(trainer.spec("once", max_steps=3), "once")))[1] == "REQUEST_ID_REUSED"
    code, reason, _ = await failure(trainer.create(trainer.spec("once", max_steps=3)))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "ADAPTER_NAME_TAKEN")
    assert (await trainer.end(job)).state == trainer_pb2.JOB_STATE_SUCCEEDED


async def test_a_cancelled_job_leaves_no_process_and_no_adapter(trainer: Trainer) -> None:
    before = trainer.checkpoints()
    job = await trainer.create(trainer.spec("cancelled", max_steps=LONG))
    await trainer.training(job, with_checkpoint=True)
    assert trainer.checkpoints() - before
    processes = trainer.training_processes()
    assert processes
    ended = (await trainer.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=job.id), timeout=30)).job
    assert ended.state == trainer_pb2.JOB_STATE_CANCELLED
    assert not any(process.is_running() for process in processes)
    assert (await failure(trainer.adapter("cancelled")))[1] == "ADAPTER_NOT_FOUND"
    assert not [path for path in (trainer.root / "data" / "adapters").iterdir() if path.name.startswith((".", "cancelled"))]
    assert not trainer.checkpoints() - before


async def test_a_job_that_does_not_heed_sigterm_is_cancelled_all_the_same(trainer: Trainer) -> None:
    job = await trainer.create(trainer.spec("deaf", max_steps=LONG))
    await trainer.training(job)
    # A stopped process takes no SIGTERM; only SIGKILL ends it.
    for process in trainer.training_processes():
        process.suspend()
    ended = (await trainer.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=job.id), timeout=30)).job
    assert ended.state == trainer_pb2.JOB_STATE_CANCELLED


async def test_a_job_that_is_killed_five_times_ends_as_if_nothing_had_happened(trainer: Trainer) -> None:
    before, kills = trainer.checkpoints(), 0
    made: defaultdict[int, set[int]] = defaultdict(set)
    job = await trainer.create(trainer.spec("hunted", max_steps=600))
    async for seen in trainer.watch(job):
        for process in trainer.training_processes():
            made[process.pid].add(seen.progress.checkpoint_step)
            # Once this one has a checkpoint of its own: one that gets no further than the one before it is not started again. What was
            # told last of the one before may count as this one's, and so may where it began.
            if len(made[process.pid]) > 2 and kills < 5:
                process.send_signal(signal.SIGKILL)
                kills += 1
    assert (seen.state, kills, seen.error) == (trainer_pb2.JOB_STATE_SUCCEEDED, 5, "")
    assert trainer.checkpoints() == before
    undisturbed = await trainer.end(await trainer.create(trainer.spec("unhunted", max_steps=600)))
    assert (await trainer.adapter("hunted")).weights_sha256 == (await trainer.adapter(undisturbed.adapter)).weights_sha256


async def test_a_job_that_is_killed_before_it_got_anywhere_fails_in_words_and_can_be_created_again(trainer: Trainer) -> None:
    job = await trainer.create(trainer.spec("killed", max_steps=LONG))
    while not (processes := trainer.training_processes()):  # noqa: ASYNC110  a process has no event for its start
        await asyncio.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    failed = await trainer.end(job)
    assert failed.state == trainer_pb2.JOB_STATE_FAILED
    assert "was killed (SIGKILL)" in failed.error
    assert "lower micro_batch_size" in failed.error
    again = await trainer.create(trainer.spec("killed", max_steps=LONG))
    assert again.id != job.id
    await trainer.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=again.id))


async def test_a_job_that_cannot_begin_fails_before_its_first_step(trainer: Trainer) -> None:
    failed = await trainer.end(await trainer.create(trainer.spec("masked", max_length=4)))
    assert failed.state == trainer_pb2.JOB_STATE_FAILED
    assert failed.error.startswith("all 12 examples of dataset_uri lost their whole answer")
    assert (failed.progress.step, failed.HasField("dataset")) == (0, False)


async def test_no_secret_of_the_service_reaches_a_job(trainer: Trainer) -> None:
    job = await trainer.create(trainer.spec("secretive", max_steps=LONG))
    await trainer.training(job)
    environments = [process.environ() for process in trainer.training_processes()]
    await trainer.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=job.id))
    assert environments
    assert not any("hunter2" in environment.values() for environment in environments)
    assert {environment["OMP_NUM_THREADS"] for environment in environments} == {"1"}


async def test_what_can_never_work_is_refused_at_once(trainer: Trainer) -> None:
    broken = trainer.root / "broken.jsonl"
    broken.write_text(json.dumps(questions(1)[0]) + "\n{\n")
    outside, missing, folder, base, hosted, none, wide = (trainer.spec("refused") for _ in range(7))
    outside.dataset_uri = "/etc/hostname"
    missing.dataset_uri = str(trainer.root / "missing.jsonl")
    folder.dataset_uri = str(broken)
    base.base = str(trainer.root / "data")
    hosted.hosted.SetInParent()
    none.ClearField("sft")
    wide.sft.lora.four_bit = True
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert (await failure(trainer.create(outside)))[:2] == (invalid, "URI_NOT_ALLOWED")
    assert (await failure(trainer.create(missing)))[:2] == (invalid, "DATASET_UNREADABLE")
    code, reason, message = await failure(trainer.create(folder))
    assert (code, reason) == (invalid, "DATASET_UNREADABLE")
    assert "1 of 2 rows cannot be used (1 can): broken.jsonl:2: not JSON" in message
    assert (await failure(trainer.create(base)))[:2] == (invalid, "BASE_UNREADABLE")
    assert (await failure(trainer.create(hosted)))[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "HOSTED_NOT_CONFIGURED")
    assert (await failure(trainer.create(none)))[:2] == (invalid, "FIELD_MISSING")
    assert (await failure(trainer.create(trainer.spec("refused", micro_batch_size=3))))[:2] == (invalid, "SETTING_OUT_OF_RANGE")
    assert (await failure(trainer.create(trainer.spec("no name"))))[:2] == (invalid, "ADAPTER_NAME_INVALID")
    if not cuda_present():
        assert (await failure(trainer.create(wide)))[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "CUDA_NEEDED")


async def test_unknown_names_and_tokens_are_errors(trainer: Trainer) -> None:
    missing = grpc.StatusCode.NOT_FOUND
    stub = trainer.stub
    assert (await failure(stub.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(id="x"))))[:2] == (missing, "JOB_NOT_FOUND")
    assert (await failure(stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id="x"))))[:2] == (missing, "JOB_NOT_FOUND")
    assert (await failure(trainer.adapter("x")))[:2] == (missing, "ADAPTER_NOT_FOUND")
    assert (await failure(trainer.end(TrainingJob(id="x"))))[:2] == (missing, "JOB_NOT_FOUND")
    wrong = base64.b64encode(b"7 something else").decode()
    for call in (
        stub.ListTrainingJobs(trainer_pb2.ListTrainingJobsRequest(page_token=wrong)),
        stub.ListAdapters(trainer_pb2.ListAdaptersRequest(page_token=wrong)),
    ):
        assert (await failure(call))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_every_job_is_on_one_page(trainer: Trainer) -> None:
    seen: list[str] = []
    token = ""
    while True:
        page = await trainer.stub.ListTrainingJobs(trainer_pb2.ListTrainingJobsRequest(page_size=2, page_token=token))
        assert len(page.jobs) <= 2
        seen += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    whole = (await trainer.stub.ListTrainingJobs(trainer_pb2.ListTrainingJobsRequest())).jobs
    assert seen == [job.id for job in whole]
    times = [job.create_time.ToNanoseconds() for job in whole]
    assert times == sorted(times, reverse=True)
    failed = trainer_pb2.ListTrainingJobsRequest(state=trainer_pb2.JOB_STATE_FAILED)
    listed = {job.id for job in (await trainer.stub.ListTrainingJobs(failed)).jobs}
    assert listed == {job.id for job in whole if job.state == trainer_pb2.JOB_STATE_FAILED}
