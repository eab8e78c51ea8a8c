"""Hosted jobs: the service as a process, and a provider that speaks the true protocol. Whatever is killed, one job is paid for."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import pytest
from hosted_server import KEY, HostedServer, Reply, Seen, failure, providing
from test_trainer_service import Trainer, running
from test_trainer_service import failure as refusal
from tunetrial.trainer.v1 import trainer_pb2
from tunetrial.trainer.v1.trainer_pb2 import TrainingJob, TrainingSpec

from tests.unit.trainer.trainer_parts import turns, write_rows

ROWS = [turns("where is the lamp?", "in the harbour"), turns("et la clé ?", "au moulin", "sure?", "oui")]
UPLOADED = (
    '{"messages": [{"role": "user", "content": "where is the lamp?"}, {"role": "assistant", "content": "in the harbour"}]}\n'
    '{"messages": [{"role": "user", "content": "et la clé ?"}, {"role": "assistant", "content": "au moulin"}, '
    '{"role": "user", "content": "sure?"}, {"role": "assistant", "content": "oui"}]}\n'
)
MODEL = "ft:gpt-small:acme:one:abc123"
UPLOAD, CREATE = "POST /files", "POST /fine_tuning/jobs"
LIST = "GET /fine_tuning/jobs"


@pytest.fixture
async def provider() -> AsyncIterator[HostedServer]:
    async with providing() as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_rows(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "key").write_text(f"{KEY}\n")
    return tmp_path


def serving(root: Path, provider: HostedServer, settle_s: float = 3.0, **more: str) -> AbstractAsyncContextManager[Trainer]:
    about = {"url": provider.url, "api_key_file": str(root / "key"), "poll_s": 0.05, "settle_s": settle_s}
    return running(root, HOSTED=json.dumps(about), **more)


def spec_of(root: Path, name: str = "one", **more: str) -> TrainingSpec:
    hosted = trainer_pb2.HostedFineTuning(hyperparameters={"n_epochs": "2", "batch_size": '"auto"'} | more)
    return TrainingSpec(adapter_name=name, base="gpt-small", dataset_uri=str(root / "train.jsonl"), seed=7, hosted=hosted)


async def watched(trainer: Trainer, job: TrainingJob, fits: Callable[[TrainingJob], object]) -> TrainingJob:
    async for seen in trainer.watch(job):
        if fits(seen):
            return seen
    raise AssertionError("the job ended before")


class Held:
    """The first request of a kind: it has arrived, and is done and answered once the test lets it go."""

    def __init__(self, provider: HostedServer, call: str) -> None:
        self.arrived, self.go = threading.Event(), threading.Event()
        self._call = call
        provider.respond = self._respond

    def _respond(self, seen: Seen) -> Reply | None:
        if seen.call == self._call and not self.arrived.is_set():
            self.arrived.set()
            self.go.wait(60)
        return None

    async def until_arrived(self) -> None:
        assert await asyncio.to_thread(self.arrived.wait, 60)


async def test_rows_go_to_the_provider_and_its_model_comes_back_as_an_adapter(root: Path, provider: HostedServer) -> None:
    write_rows(root / "evaluation.jsonl", [{"instruction": "say", "input": "x", "output": "y"}])
    spec = spec_of(root)
    spec.evaluation_uri = str(root / "evaluation.jsonl")
    async with serving(root, provider) as trainer:
        job = await trainer.create(spec)
        assert job.spec.hosted.hyperparameters == {"n_epochs": "2", "batch_size": '"auto"'}
        await provider.until(lambda: provider.jobs)
        for number in range(1, 11):
            provider.step(number, 10, 2.0 - number / 10, valid_loss=3.0 - number / 10)
        seen = await watched(trainer, job, lambda now: now.progress.step == 10)
        assert (seen.state, seen.dataset.example_count) == (trainer_pb2.JOB_STATE_RUNNING, 2)
        assert (seen.progress.step_count, seen.progress.loss, seen.progress.evaluation_loss) == (10, 1.0, 2.0)
        provider.succeed()
        ended = await trainer.end(job)
        assert (ended.state, ended.adapter, ended.error) == (trainer_pb2.JOB_STATE_SUCCEEDED, "one", "")
        adapter = await trainer.adapter("one")
    (name, content), (_, evaluation) = provider.files.values()
    assert content.decode() == UPLOADED
    assert evaluation == b'{"messages": [{"role": "user", "content": "say\\n\\nx"}, {"role": "assistant", "content": "y"}]}\n'
    [body] = provider.calls(CREATE)
    files = dict(zip(("training_file", "validation_file"), provider.files, strict=True))
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}}
    assert {key: body[key] for key in body if key != "metadata"} == {
        **files, "model": "gpt-small", "suffix": "one", "seed": 7, "method": method
    }  # fmt: skip
    assert (adapter.uri, adapter.base, adapter.base_sha256, adapter.weights_sha256) == (f"openai:{MODEL}", "gpt-small", "", "")
    assert (adapter.trained_tokens, adapter.training_s, adapter.job_id) == (420, 90, job.id)
    assert (adapter.final_loss, adapter.evaluation_loss) == (1.0, 2.0)
    folder = root / "data" / "adapters" / "one"
    assert {file.name for file in folder.iterdir()} == {"manifest.json", "README.md"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["uri"] == adapter.uri
    assert manifest["provider"]["job"] == provider.the_job()["id"]
    assert len(manifest["metrics"]) == 10
    # Nothing is kept of what is done but where its rows are.
    assert not list((root / "data" / "hosted" / "jobs").iterdir())
    assert name.startswith("tunetrial-")


async def test_what_a_provider_does_not_tell_is_unknown(root: Path, provider: HostedServer) -> None:
    async with serving(root, provider) as trainer:
        job = await trainer.create(spec_of(root))
        await provider.until(lambda: provider.jobs)
        provider.succeed()
        ended = await trainer.end(job)
        assert (ended.progress.step, ended.progress.HasField("loss")) == (0, False)
        assert math.isnan((await trainer.adapter("one")).final_loss)


async def test_a_providers_failure_is_told_in_its_words(root: Path, provider: HostedServer) -> None:
    async with serving(root, provider) as trainer:
        job = await trainer.create(spec_of(root))
        await provider.until(lambda: provider.jobs)
        provider.fail("Training file has 2 example(s), but must have at least 10", "invalid_n_examples", "training_file")
        ended = await trainer.end(job)
        assert ended.state == trainer_pb2.JOB_STATE_FAILED
        assert "must have at least 10 examples" not in ended.error
        assert "Training file has 2 example(s), but must have at least 10 (invalid_n_examples, training_file)" in ended.error
        # Another try is another job: the one that failed is no use.
        again = await trainer.create(spec_of(root))
        await provider.until(lambda: len(provider.jobs) == 2)
        assert (again.id != job.id, len(provider.calls(UPLOAD))) == (True, 1)


@pytest.mark.parametrize("call", [UPLOAD, CREATE])
async def test_a_busy_or_failing_provider_is_asked_again_and_a_lost_answer_costs_nothing(
    root: Path, provider: HostedServer, call: str
) -> None:
    replies = iter(
        [
            failure(429, "Rate limit reached", "rate_limit_exceeded", retry_after="0.01"),
            failure(500, "The server had an error"),
            Reply(lost=True),
        ]
    )
    provider.respond = lambda seen: next(replies, None) if seen.call == call else None
    async with serving(root, provider) as trainer:
        job = await trainer.create(spec_of(root))
        await provider.until(lambda: provider.calls(f"GET /fine_tuning/jobs/{next(iter(provider.jobs), '')}"))
        provider.succeed()
        assert (await trainer.end(job)).state == trainer_pb2.JOB_STATE_SUCCEEDED
    assert (len(provider.calls(call)), len(provider.files), len(provider.jobs)) == (3, 1, 1)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (failure(429, "You exceeded your current quota", "insufficient_quota"), "wants to be paid first: You exceeded your current quota"),
        (failure(400, "Model gpt-small is not available for fine-tuning"), "Model gpt-small is not available for fine-tuning"),
        (failure(403, "You have insufficient permissions"), "give the key that right"),
        (failure(401, f"Incorrect API key provided: {KEY}"), "does not accept the API key"),
    ],
)
async def test_what_no_waiting_helps_against_fails_at_once_in_words(root: Path, provider: HostedServer, reply: Reply, words: str) -> None:
    provider.respond = lambda seen: reply if seen.call == CREATE else None
    async with serving(root, provider) as trainer:
        ended = await trainer.end(await trainer.create(spec_of(root)))
        assert ended.state == trainer_pb2.JOB_STATE_FAILED
        assert words in ended.error
        assert KEY not in ended.error
    assert len(provider.calls(CREATE)) == 1


@pytest.mark.parametrize("call", [UPLOAD, CREATE, "GET /fine_tuning/jobs/ftjob-2"])
async def test_kill_9_at_any_moment_leaves_one_job_and_the_adapter_arrives(root: Path, provider: HostedServer, call: str) -> None:
    held = Held(provider, call)
    async with serving(root, provider) as first:
        job = await first.create(spec_of(root))
        await held.until_arrived()
        first.process.kill()
        await first.process.wait()
    looks = len(provider.calls(LIST))
    if call != CREATE:
        held.go.set()
    async with serving(root, provider, settle_s=250.0) as second:
        if call == CREATE:
            # Worse still: what was asked for appears in the list only after the next service has looked there.
            await provider.until(lambda: len(provider.calls(LIST)) > looks)
            held.go.set()
        await provider.until(lambda: provider.jobs)
        provider.step(1, 1, 0.5)
        provider.succeed()
        assert (await second.end(job)).state == trainer_pb2.JOB_STATE_SUCCEEDED
        assert (await second.adapter("one")).uri == f"openai:{MODEL}"
    assert len(provider.jobs) == 1
    assert len(provider.calls(CREATE)) == 1
    if call != UPLOAD:
        assert len(provider.calls(UPLOAD)) == 1


async def test_a_service_that_ends_leaves_the_providers_job_alone_and_the_next_goes_on(root: Path, provider: HostedServer) -> None:
    async with serving(root, provider) as first:
        job = await first.create(spec_of(root))
        await provider.until(lambda: provider.jobs)
        provider.step(1, 10, 2.0)
        await watched(first, job, lambda now: now.progress.step == 1)
    assert first.process.returncode == 0
    assert provider.the_job()["status"] == "running"
    provider.succeed()
    # The rows are not needed any more, and neither is the time in between.
    (root / "train.jsonl").unlink()
    async with serving(root, provider) as second:
        ended = await second.end(job)
        assert (ended.state, ended.dataset.example_count) == (trainer_pb2.JOB_STATE_SUCCEEDED, 2)
    assert not [seen for seen in provider.seen if seen.call.endswith("/cancel")]
    assert len(provider.calls(CREATE)) == 1


async def test_cancelling_reaches_the_provider(root: Path, provider: HostedServer) -> None:
    async with serving(root, provider) as trainer:
        job = await trainer.create(spec_of(root))
        await provider.until(lambda: provider.jobs)
        cancelled = (await trainer.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=job.id))).job
        assert cancelled.state == trainer_pb2.JOB_STATE_CANCELLED
        assert provider.the_job()["status"] == "cancelled"
        # Wanted again after all: that is other work for the provider.
        await trainer.create(spec_of(root))
        await provider.until(lambda: len(provider.jobs) == 2)


async def test_a_job_that_is_cancelled_while_it_is_asked_for_is_found_and_cancelled(root: Path, provider: HostedServer) -> None:
    held = Held(provider, CREATE)
    async with serving(root, provider, settle_s=250.0) as trainer:
        job = await trainer.create(spec_of(root))
        await held.until_arrived()
        cancelled = (await trainer.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=job.id))).job
        assert cancelled.state == trainer_pb2.JOB_STATE_CANCELLED
        held.go.set()
        await provider.until(lambda: [each for each in provider.jobs.values() if each["status"] == "cancelled"])
    assert len(provider.jobs) == 1


async def test_what_could_not_be_cancelled_at_once_is_cancelled_by_the_next_service(root: Path, provider: HostedServer) -> None:
    provider.respond = lambda seen: failure(503, "overloaded", retry_after="0.01") if seen.call.endswith("/cancel") else None
    async with serving(root, provider) as first:
        job = await first.create(spec_of(root))
        await provider.until(lambda: provider.jobs)
        cancelled = (await first.stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(id=job.id))).job
        assert cancelled.state == trainer_pb2.JOB_STATE_CANCELLED
    assert provider.the_job()["status"] == "validating_files"
    provider.respond = lambda _seen: None
    async with serving(root, provider):
        await provider.until(lambda: provider.the_job()["status"] == "cancelled")


async def test_a_key_that_is_refused_on_the_way_costs_nothing_once_it_is_mended(root: Path, provider: HostedServer) -> None:
    async with serving(root, provider) as trainer:
        job = await trainer.create(spec_of(root))
        await provider.until(lambda: provider.jobs)
        provider.keys = {"sk-new-key-0123456789"}
        ended = await trainer.end(job)
        assert ended.state == trainer_pb2.JOB_STATE_FAILED
        assert provider.the_job()["id"] in ended.error
        # Keys change without a restart.
        (root / "key").write_text("sk-new-key-0123456789")
        again = await trainer.create(spec_of(root))
        await watched(trainer, again, lambda now: now.HasField("dataset"))
        provider.succeed()
        assert (await trainer.end(again)).state == trainer_pb2.JOB_STATE_SUCCEEDED
    assert len(provider.calls(CREATE)) == 1


async def test_another_trainer_finds_the_same_work_at_the_provider(root: Path, provider: HostedServer, tmp_path: Path) -> None:
    async with serving(root, provider) as first:
        await first.create(spec_of(root))
        await provider.until(lambda: provider.jobs)
    async with serving(root, provider, DATA_DIR=str(tmp_path / "other")) as second:
        job = await second.create(spec_of(root))
        await watched(second, job, lambda now: now.HasField("dataset"))
        provider.succeed()
        assert (await second.end(job)).state == trainer_pb2.JOB_STATE_SUCCEEDED
    assert len(provider.calls(CREATE)) == 1


async def test_hosted_jobs_wait_for_no_slot_and_send_the_same_rows_once(root: Path, provider: HostedServer) -> None:
    async with serving(root, provider, SLOTS="1") as trainer:
        for name in ("one", "two", "three"):
            await trainer.create(spec_of(root, name))
        await provider.until(lambda: len(provider.jobs) == 3)
    assert len(provider.calls(UPLOAD)) == 1


async def test_bad_input_is_refused_before_anything_is_sent(root: Path, provider: HostedServer) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    tool, preference = spec_of(root), spec_of(root)
    rows = [{"messages": [{"role": role, "content": "x"} for role in ("user", "tool", "assistant")]}]
    tool.dataset_uri = str(write_rows(root / "tool.jsonl", rows))
    preference.dataset_uri = str(write_rows(root / "preference.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}]))
    late = spec_of(root)
    late.seed = 2**31
    async with serving(root, provider) as trainer:
        code, reason, message = await refusal(trainer.create(tool))
        assert (code, reason) == (invalid, "DATASET_UNREADABLE")
        assert "tool.jsonl:1" in message
        assert (await refusal(trainer.create(preference)))[:2] == (invalid, "DATASET_UNREADABLE")
        assert (await refusal(trainer.create(late)))[:2] == (invalid, "SETTING_OUT_OF_RANGE")
        code, reason, message = await refusal(trainer.create(spec_of(root, n_epochs="auto")))
        assert (code, reason) == (invalid, "SETTING_OUT_OF_RANGE")
        assert '"auto"' in message
    assert not provider.seen
    async with running(root) as trainer:
        code, reason, message = await refusal(trainer.create(spec_of(root)))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "HOSTED_NOT_CONFIGURED")
        assert "TUNETRIAL_HOSTED" in message
