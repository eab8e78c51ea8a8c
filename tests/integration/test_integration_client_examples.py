"""The Python of the example and of docs/client.md as its reader runs it. The examples for Go and grpcurl are in tests/real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tests.integration.generator_process import ROOT, Running, generator

PROGRAM = ROOT / "examples" / "client" / "python" / "ask.py"
DOCUMENT = ROOT / "docs" / "client.md"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = ROOT / "examples" / "quickstart" / "base"
    with generator(tmp_path_factory.mktemp("generator"), models=f"base={base}") as running:
        yield running


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")}
    environment |= {"PYTHONPATH": str(ROOT / "protos")}
    return subprocess.run((sys.executable, *arguments), env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_example_answers_streams_and_names_the_bad_request(running: Running) -> None:
    done = python(str(PROGRAM), running.address, "base")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["answer: Revuna", "cites: d#2", "streamed: Tazopi"]
    failed, *answered = sorted(lines[3:], key=lambda line: "failed" not in line)
    assert failed.startswith("batch: blank failed with QUESTION_INVALID")
    assert sorted(answered) == ["batch: bakodu is Tazopi", "batch: lomira is Revuna"]


def test_the_example_says_why_it_failed(running: Running) -> None:
    done = python(str(PROGRAM), running.address, "nobody")
    assert done.returncode == 1
    assert done.stderr.startswith("NOT_FOUND: ")
    assert "MODEL_NOT_FOUND" in done.stderr


def test_the_python_of_the_document_runs_as_it_stands(running: Running) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    body = textwrap.indent("\n".join(blocks), "    ").replace("localhost:7002", running.address)
    done = python("-c", f"async def document():\n{body}\n    await generator.close()\n\nimport asyncio\nasyncio.run(document())\n")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("Revuna ['d#2'] ")
    # The stream ends without a line break, so the first of the batch follows it.
    assert lines[0].startswith("Revunaq")
    assert sorted([lines[0].removeprefix("Revuna"), *lines[1:-1]]) == sorted(f"q{number} Revuna" for number in range(100))
    assert lines[-1] == "Tazopi"
