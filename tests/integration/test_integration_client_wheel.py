"""The client wheel, installed alone into a fresh environment, calls a running generator."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CALL = """
import sys
import grpc
from tunetrial import prompts
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    generator = generator_pb2_grpc.GeneratorServiceStub(channel)
    request = generator_pb2.AnswerRequest(model="small", question="Where was Lomira born?", template=prompts.load("plain/v1"))
    request.passages.passages.add(id="d#1", text="Bakodu was born in Tazopi.")
    request.passages.passages.add(id="d#2", text="Lomira was born in Revuna.")
    answer = generator.Answer(request, wait_for_ready=True, timeout=60)
    print(answer.text, [citation.passage_id for citation in answer.citations])
try:
    import torch
except ImportError:
    print("no torch")
"""


@pytest.fixture
def generator(tmp_path: Path) -> Iterator[str]:
    port_file = tmp_path / "port"
    own = {
        "TUNETRIAL_MODELS": f"small={ROOT / 'examples' / 'quickstart' / 'base'}",
        "TUNETRIAL_PORT": "0",
        "TUNETRIAL_PORT_FILE": str(port_file),
        "TUNETRIAL_DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "services.generator"], cwd=ROOT, env={**os.environ, **own})
    try:
        deadline = time.monotonic() + 120
        while not port_file.exists():
            assert process.poll() is None, "the generator ended"
            assert time.monotonic() < deadline, "the generator did not start"
            time.sleep(0.1)
        yield f"127.0.0.1:{port_file.read_text()}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_wheel_alone_is_enough_to_call_the_generator(tmp_path: Path, generator: str) -> None:
    def do(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    do(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT / "protos")
    (wheel,) = tmp_path.glob("tunetrial_client-*.whl")
    fresh = tmp_path / "venv"
    do(sys.executable, "-m", "venv", fresh)
    python = fresh / "bin" / "python"
    do(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    assert do(python, "-c", CALL, generator).splitlines() == ["Revuna ['d#2']", "no torch"]
    packages = do(python, "-c", "import tunetrial; print(list(tunetrial.__path__)[0])").strip()
    assert (Path(packages) / "py.typed").is_file()
