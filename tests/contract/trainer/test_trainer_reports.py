"""MLflow's own server and Weights & Biases' own files: what they are told of a job that is killed in between, to the last byte."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from test_trainer_service import REPOSITORY, Trainer, running
from tunetrial.trainer.v1 import trainer_pb2
from wandb.proto import wandb_internal_pb2

from tests.contract.common.s3_server import Door
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows

pytestmark = pytest.mark.timeout(1200)

STEPS = 200


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[Door]:
    """A real server, with a door before it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    store = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"))
    command = (sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store)
    with (folder / "mlflow.txt").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | given, stdout=log, stderr=log, start_new_session=True)
    door = Door(port)
    try:
        while True:
            assert server.poll() is None, (folder / "mlflow.txt").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                break
            time.sleep(0.2)
        yield door
    finally:
        door.close()
        os.killpg(server.pid, 15)
        server.wait()


async def killed_once(trainer: Trainer, name: str) -> trainer_pb2.TrainingJob:
    """How a job ends whose process was killed when it had something to go on from."""
    job = await trainer.create(trainer.spec(name, max_steps=STEPS, learning_rate=3e-4))
    await trainer.training(job, with_checkpoint=True)
    for process in trainer.training_processes():
        process.kill()
    ended = await trainer.end(job)
    assert (ended.state, ended.error) == (trainer_pb2.JOB_STATE_SUCCEEDED, "")
    return ended


def records_of(file: Path) -> Iterator[Any]:
    """What a file of Weights & Biases holds, which is what is sent of it: records in the log format of LevelDB, after seven bytes."""
    content, at, begun = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at < len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        begun += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            begun = b""
            yield record


async def test_only_settings_and_figures_are_told_and_a_job_that_goes_on_goes_on_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(12))
    with mlflow_server(tmp_path) as door:
        given = {"MLFLOW_TRACKING_URI": door.url, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path / "runs"), "WANDB_API_KEY": "w" * 40}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "runs").mkdir()
        async with running(tmp_path, REPORT_TO="mlflow, wandb", CHECKPOINT_S="0.2") as trainer:
            job = await killed_once(trainer, "told")
            adapter = await trainer.adapter("told")
        client = mlflow.MlflowClient(f"http://127.0.0.1:{door.port}")
        experiment = client.get_experiment_by_name("tunetrial")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert (run.info.run_name, run.info.status) == ("told", "FINISHED")
        settings = run.data.params
        losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
        sent = bytes(door.sent)

    # Settings.
    assert settings["dataset_sha256"] == adapter.dataset_sha256
    assert settings["base"] == "tiny"
    told = {"lora.rank": "2", "lora.dropout": "0.1", "optimization.learning_rate": "0.0003", "optimization.max_steps": str(STEPS)}
    assert {f"method.{name}": value for name, value in told.items()}.items() <= settings.items()
    assert all(re.match(r"(adapter_name|base|base_sha256|dataset_sha256|seed|method\..+)$", name) for name in settings)

    # Figures.
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] == pytest.approx(job.progress.loss, rel=1e-3)

    # Weights & Biases: the same, under one id.
    files = sorted((tmp_path / "runs").rglob("*.wandb"))
    assert len(files) == 2, "one of each attempt"
    assert len({file.stem for file in files}) == 1
    records = [record for file in files for record in records_of(file)]
    (name,) = {record.run.display_name for record in records if record.HasField("run")}
    assert name == "told"
    configs = [update.key for record in records if record.HasField("run") for update in record.run.config.update if update.key != "_wandb"]
    assert set(configs) == set(settings)
    # What the first attempt told last was not written down any more when it was killed.
    last = max(files, key=lambda file: file.stat().st_mtime)
    told_steps = [
        int(item.value_json)
        for record in records_of(last)
        for item in record.history.item
        if "train/global_step" in (item.key, *item.nested_key)
    ]
    assert sorted(set(told_steps)) == list(range(min(told_steps), STEPS + 1))

    # Nothing else.
    text = sent.decode("latin-1") + "".join(map(str, records))
    told_by_design = {door.url, "mlflow, wandb"}
    secrets = {value for value in os.environ.values() if len(value) >= 8} - told_by_design | {"hunter2"}
    places = {str(tmp_path), str(REPOSITORY), sys.prefix, str(Path.home()), "/base", ".jsonl", "checkpoints"}
    found = sorted(value for value in secrets | places if value in text)
    assert not found
    assert not re.search(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w.-])", text)


async def test_a_job_fails_before_its_first_step_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(12))
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    async with running(tmp_path, REPORT_TO="mlflow") as trainer:
        ended = await trainer.end(await trainer.create(trainer.spec("untold", max_steps=5)))
    assert ended.state == trainer_pb2.JOB_STATE_FAILED
    assert ended.error.startswith("MLflow (TUNETRIAL_REPORT_TO) does not take the run: ")
    assert ended.progress.step == 0


def test_a_name_that_is_unknown_is_refused_at_the_start(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos'}", "TUNETRIAL_REPORT_TO": "mlflow,comet"}
    done = subprocess.run(
        (sys.executable, "-m", "services.trainer"), check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "report_to" in done.stderr
    assert "'mlflow' or 'wandb'" in done.stderr
