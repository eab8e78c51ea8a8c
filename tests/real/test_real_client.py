"""The examples for Go and grpcurl as their readers run them, against running generators. They need Go."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.generator_process import ROOT, Certificates, Running, generator, make_certificates
from tests.real import go_tools

EXAMPLES = ROOT / "examples" / "client"
TOKEN = "token-of-a-caller"

pytestmark = pytest.mark.timeout(1500)  # Go builds its libraries the first time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if lack := go_tools.missing():
        pytest.fail(lack)
    folder = tmp_path_factory.mktemp("client")
    (folder / "tokens").write_text(f"{TOKEN} use\n")
    return folder


@pytest.fixture(scope="module")
def open_generator(folder: Path) -> Iterator[Running]:
    with generator(folder / "open") as running:
        yield running


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return make_certificates(folder)


@pytest.fixture(scope="module")
def guarded_generator(folder: Path, certificates: Certificates) -> Iterator[Running]:
    tls = {"tls_certificate": str(certificates.certificate), "tls_key": str(certificates.key)}
    with generator(folder / "guarded", token_file=str(folder / "tokens"), **tls) as running:
        yield running


@pytest.fixture(scope="module")
def ask(folder: Path) -> Path:
    return go_tools.build(EXAMPLES / "go", ROOT, folder)


@pytest.fixture(scope="module")
def grpcurl(folder: Path) -> Path:
    return go_tools.grpcurl()


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")}
    return subprocess.run(list(map(str, command)), env={**own, **environment}, capture_output=True, text=True, check=False, timeout=120)


def test_the_go_example_answers_and_streams(ask: Path, open_generator: Running) -> None:
    done = run(ask, "-address", open_generator.address, "-model", "small")
    assert done.returncode == 0, done.stderr
    answer, cites, passages, streamed, tokens = done.stdout.splitlines()
    assert (answer, cites) == ("answer: Revuna", "cites: d#2")
    assert (passages, streamed) == ("passages: 3", "streamed: Revuna")
    assert int(tokens.removeprefix("tokens: ")) > 0


def test_the_go_example_says_why_it_failed(ask: Path, open_generator: Running) -> None:
    done = run(ask, "-address", open_generator.address, "-model", "nobody")
    assert done.returncode == 1
    assert done.stderr.startswith("NotFound: ")
    assert "[MODEL_NOT_FOUND]" in done.stderr


def test_the_go_example_sends_its_token_over_tls_only(
    ask: Path, open_generator: Running, guarded_generator: Running, certificates: Certificates
) -> None:
    call = (ask, "-address", guarded_generator.address, "-model", "small", "-ca", certificates.certificate)
    assert run(*call, TUNETRIAL_TOKEN=TOKEN).stdout.startswith("answer: Revuna\n")
    assert "[TOKEN_INVALID]" in run(*call, TUNETRIAL_TOKEN="another").stderr
    refused = run(ask, "-address", open_generator.address, "-model", "small", TUNETRIAL_TOKEN=TOKEN)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "transport level security" in refused.stderr


def test_the_grpcurl_example_answers_by_reflection(grpcurl: Path, open_generator: Running) -> None:
    done = run(EXAMPLES / "grpcurl" / "answer.sh", open_generator.address, "small", GRPCURL=str(grpcurl))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["model"]) == ("Revuna", "small")
    assert [citation["passage_id"] for citation in answer["citations"]] == ["d#2"]
    listed = run(grpcurl, "-plaintext", open_generator.address, "list")
    assert "tunetrial.generator.v1.GeneratorService" in listed.stdout.splitlines()


def test_the_grpcurl_example_shows_the_reason_of_a_failure(grpcurl: Path, open_generator: Running) -> None:
    done = run(EXAMPLES / "grpcurl" / "answer.sh", open_generator.address, "nobody", GRPCURL=str(grpcurl))
    assert done.returncode != 0
    assert '"reason": "MODEL_NOT_FOUND"' in done.stderr


def test_the_grpcurl_example_sends_its_token_over_tls_only(grpcurl: Path, guarded_generator: Running, certificates: Certificates) -> None:
    script, known = EXAMPLES / "grpcurl" / "answer.sh", {"GRPCURL": str(grpcurl), "TUNETRIAL_CA": str(certificates.certificate)}
    done = run(script, guarded_generator.address, "small", TUNETRIAL_TOKEN=TOKEN, **known)
    assert json.loads(done.stdout)["text"] == "Revuna"
    assert '"reason": "TOKEN_INVALID"' in run(script, guarded_generator.address, "small", **known).stderr
    refused = run(script, "generator.example.com:7002", "small", TUNETRIAL_TOKEN=TOKEN, GRPCURL=str(grpcurl))
    assert (refused.returncode, refused.stderr) == (2, "a token goes to generator.example.com:7002 with TLS only: set TUNETRIAL_CA\n")


def test_the_grpcurl_that_is_tested_is_the_one_that_is_recommended() -> None:
    texts = [path.read_text() for path in (EXAMPLES / "README.md", ROOT / "docs" / "client.md")]
    assert {version for text in texts for version in go_tools.pinned_in(text)} == {go_tools.GRPCURL}
