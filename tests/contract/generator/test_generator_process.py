"""The service as a process of its own, configured by its environment only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc

ROOT = Path(__file__).parents[3]
SERVICE = "tunetrial.generator.v1.GeneratorService"


@contextmanager
def process(base: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], grpc.Channel]]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}",
        "TUNETRIAL_MODELS": f"tiny={base}",
        "TUNETRIAL_PORT": "0",
        "TUNETRIAL_PORT_FILE": str(folder / "port"),
        "TUNETRIAL_DATA_DIR": str(folder / "data"),
        "TUNETRIAL_URI_ROOTS": str(base.parent.parent),
    }
    child = subprocess.Popen([sys.executable, "-m", "services.generator"], cwd=ROOT, env=environment)
    try:
        while not (folder / "port").exists():
            assert child.poll() is None
            time.sleep(0.05)
        with grpc.insecure_channel(f"127.0.0.1:{(folder / 'port').read_text()}") as channel:
            yield child, channel
    finally:
        child.kill()
        child.wait()


def wait_until_serving(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    for response in stub.Watch(request, timeout=240):
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return
    raise AssertionError


def say(stub: generator_pb2_grpc.GeneratorServiceStub, model: str, tokens: int = 8) -> pb.GenerateResponse:
    request = pb.GenerateRequest(model=model, prompt=pb.Prompt(text="the old mill"), decoding=pb.Decoding(max_tokens=tokens))
    return stub.Generate(request, timeout=60)


def test_a_process_serves_loads_and_drains(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    with process(base, tmp_path) as (child, channel):
        stub = generator_pb2_grpc.GeneratorServiceStub(channel)
        wait_until_serving(channel)
        stub.LoadAdapter(pb.LoadAdapterRequest(name="ada.1", uri=str(adapters["ada.1"])), timeout=60)
        stub.SetAlias(pb.SetAliasRequest(alias="production", target="ada.1"), timeout=60)
        text = say(stub, "production")
        assert text.model == "ada.1"
        assert text.text != say(stub, "tiny").text
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=120) == 0
