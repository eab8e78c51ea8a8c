"""A generator as a process of its own over the quickstart's small base, for tests of those who call it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parents[2]
SERVICE = "tunetrial.generator.v1.GeneratorService"
PASSAGES = (("d#1", "Bakodu was born in Tazopi."), ("d#2", "Lomira was born in Revuna."))
QUESTION = "Where was Lomira born?"


@dataclass(frozen=True)
class Running:
    """The process, and where it listens."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Certificates:
    """PEM files of one self-signed certificate for this machine, which is its own CA."""

    certificate: Path
    key: Path


@contextmanager
def generator(folder: Path, **settings: str) -> Iterator[Running]:
    """A generator that serves the base as `small`; settings by their names without the prefix."""
    folder.mkdir(exist_ok=True)
    own = {
        "models": f"small={ROOT / 'examples' / 'quickstart' / 'base'}",
        "port": "0",
        "port_file": str(folder / "port"),
        "data_dir": str(folder / "data"),
        **settings,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")}
    environment |= {f"TUNETRIAL_{name.upper()}": value for name, value in own.items()}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.generator"], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while not (folder / "port").exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the generator did not start"
            time.sleep(0.05)
        running = Running(process, int((folder / "port").read_text()))
        _wait_until_serving(running, settings)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=60)


def make_certificates(folder: Path) -> Certificates:
    """For localhost and 127.0.0.1."""
    made = Certificates(folder / "tls.crt", folder / "tls.key")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    command = (*command, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(made.key), "-out", str(made.certificate))
    subprocess.run(command, check=True, capture_output=True)
    return made


def _wait_until_serving(running: Running, settings: dict[str, str]) -> None:
    if "tls_certificate" in settings:
        certificate, key = Path(settings["tls_certificate"]).read_bytes(), Path(settings["tls_key"]).read_bytes()
        channel = grpc.secure_channel(running.address, grpc.ssl_channel_credentials(certificate, key, certificate))
    else:
        channel = grpc.insecure_channel(running.address)
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for response in stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=240):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise AssertionError("the generator does not serve")
