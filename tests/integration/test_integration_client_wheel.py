"""The client wheel, installed alone into a fresh environment, calls a running generator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.generator_process import ROOT, Running, generator

pytestmark = pytest.mark.timeout(1200)

CALL = """
import sys
from tunetrial.client import GeneratorError, SyncGeneratorClient

passages = [("d#1", "Bakodu was born in Tazopi."), ("d#2", "Lomira was born in Revuna.")]
with SyncGeneratorClient(sys.argv[1]) as generator:
    answer = generator.answer("small", "Where was Lomira born?", passages=passages, template="plain/v1")
    print(answer.text, [citation.passage_id for citation in answer.citations])
    try:
        generator.answer("nobody", "Where was Lomira born?")
    except GeneratorError as error:
        print(error.reason)
for module in ("torch", "grpc_status"):
    try:
        __import__(module)
    except ImportError:
        print("no", module)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with generator(tmp_path / "generator") as running:
        yield running


def test_the_wheel_alone_is_enough_to_call_the_generator(tmp_path: Path, running: Running) -> None:
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
    assert do(python, "-c", CALL, running.address).splitlines() == ["Revuna ['d#2']", "MODEL_NOT_FOUND", "no torch", "no grpc_status"]
    packages = do(python, "-c", "import tunetrial; print(list(tunetrial.__path__)[0])").strip()
    assert (Path(packages) / "py.typed").is_file()
