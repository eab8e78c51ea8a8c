"""The generator over a vLLM, as a process. Knows no figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.real.vllm_server import VllmServer

ROOT = Path(__file__).resolve().parents[2]
NAME = "tunetrial.generator.v1.GeneratorService"
SHAPE = ROOT / "examples" / "quickstart" / "base"


@contextmanager
def generator(name: str, base: Path, server: VllmServer, folder: Path, **settings: str) -> Iterator[str]:
    """The address of a generator that serves `base` on the vLLM; adapters lie in `folder`."""
    port = folder / "generator-port"
    given = {
        "ENGINES": json.dumps({name: {"engine": "vllm", "urls": [server.url], "source": str(base)}}),
        "PORT": "0",
        "PORT_FILE": str(port),
        "DATA_DIR": str(folder / "generator"),
        "URI_ROOTS": str(folder),
        "LOG_LEVEL": "WARNING",
        **settings,
    }
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"} | {f"TUNETRIAL_{key}": value for key, value in given.items()}
    child = subprocess.Popen([sys.executable, "-m", "services.generator"], env=environment, cwd=ROOT)
    try:
        while not port.exists():
            if child.poll() is not None:
                raise SystemExit("the generator did not start")
            time.sleep(0.1)
        address = f"127.0.0.1:{port.read_text()}"
        with grpc.insecure_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            for state in health.Watch(health_pb2.HealthCheckRequest(service=NAME)):
                if state.status == health_pb2.HealthCheckResponse.SERVING:
                    break
        yield address
    finally:
        child.terminate()
        child.wait()
