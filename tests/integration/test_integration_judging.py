"""The judge stage with a real judge process and a language model behind a real HTTP endpoint: budget, failures, and nothing paid twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.connections import Services
from flows.errors import TrialError
from flows.progress import Silent
from flows.records import Answer, Item
from flows.spec_file import load
from flows.stages.judge import BudgetReached, judge
from flows.stages.prepare import Prepared
from flows.store import Store
from flows.trial import Trial

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"


MARK = "Wieviel ist"
"""In every question, so that the endpoint can tell a judging prompt from the request for evaluation steps."""


class Endpoint(ThreadingHTTPServer):
    """Speaks chat completions. Scores 4; an answer with `hopeless` in it is refused with 400, one with `broken` with 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prompts: list[str] = []
        self.broken = True


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = "\n".join(str(message["content"]) for message in request["messages"])
        assert isinstance(self.server, Endpoint)
        steps = MARK not in prompt
        self.server.prompts += [] if steps else [prompt]
        if "hopeless" in prompt:
            return self._send(400, {"error": {"message": "too long for me", "type": "invalid_request_error"}})
        if "broken" in prompt and self.server.broken:
            return self._send(500, {"error": {"message": "oops"}})
        reply = "1. Read it.\n2. Compare it." if steps else "Score: 4"
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        tokens = 1 if steps else 1_000_000
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        return self._send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage})

    def _send(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Says nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def address(tmp_path: Path, endpoint: Endpoint) -> Iterator[str]:
    port_file = tmp_path / "port"
    own = {
        "TUNETRIAL_PORT": "0",
        "TUNETRIAL_PORT_FILE": str(port_file),
        "TUNETRIAL_DATA_DIR": str(tmp_path / "judge"),
        "TUNETRIAL_DEFAULT_ENGINE": "openai",
        "TUNETRIAL_OPENAI_BASE_URL": f"http://127.0.0.1:{endpoint.server_address[1]}/v1",
        "TUNETRIAL_OPENAI_MODEL": "m",
        "TUNETRIAL_OPENAI_MAX_RETRIES": "0",
        "TUNETRIAL_OPENAI_PRICES": json.dumps({"m": {"input_per_million": 1, "output_per_million": 1}}),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "services.judge"], cwd=ROOT, env={**os.environ, **own})
    deadline = time.monotonic() + 120
    while not port_file.exists():
        assert process.poll() is None, "the judge ended"
        assert time.monotonic() < deadline, "the judge did not start"
        time.sleep(0.1)
    yield f"127.0.0.1:{port_file.read_text()}"
    process.terminate()
    process.wait(timeout=30)


def trial(tmp_path: Path, address: str, **judge_settings: Any) -> Trial:
    spec = {
        "name": "judged",
        "data": {"reader": "qasper", "path": str(QUICKSTART / "data" / "qasper.json")},
        "models": {"small": {"base": str(QUICKSTART / "base")}},
        "arms": {"base": {"model": "small"}, "closed": {"model": "small", "rag": False}},
        "judge": {"engine": "openai", "rubric": ["accuracy"], "runs": 1, **judge_settings},
        "analysis": {"control": "base", "primary": {"arm": "closed"}},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    return Trial(load(tmp_path / "spec.yaml"), tmp_path, Store(str(tmp_path / "store")), Services({"judge": address}), Silent())


def material(*texts: str) -> tuple[Prepared, list[Answer]]:
    items = tuple(Item(f"i{number}", f"{MARK} {number}?", ("reference",), f"c{number}") for number in range(len(texts)))
    answers = [
        Answer(arm, item.id, 0, text, False, "end", 1, 1, 1.0, 0.0, "h", (), (), ())
        for item, text in zip(items, texts, strict=True)
        for arm in ("base", "closed")
    ]
    return Prepared("key", items, (), (), (), {}, (), {}), answers


async def test_equal_answers_are_judged_once_and_stored_ones_never_again(tmp_path: Path, address: str, endpoint: Endpoint) -> None:
    prepared, answers = material("one", "two")
    first, rubrics = await judge(trial(tmp_path, address), prepared, answers)
    assert [row.score for row in first] == [4.0] * 4
    assert rubrics[0].details["steps"] == ["Read it.", "Compare it."]
    assert len(endpoint.prompts) == 2
    again, _ = await judge(trial(tmp_path, address), prepared, answers)
    assert again == first
    assert len(endpoint.prompts) == 2


async def test_a_budget_is_never_exceeded_and_what_was_judged_is_kept(tmp_path: Path, address: str, endpoint: Endpoint) -> None:
    prepared, answers = material(*(f"answer {number}" for number in range(10)))
    # A judgement costs 1 USD here.
    with pytest.raises(BudgetReached, match="7 answers are left"):
        await judge(trial(tmp_path, address, budget_usd=3.5), prepared, answers)
    assert len(endpoint.prompts) == 3
    # The same budget again buys nothing more: what was spent counts.
    with pytest.raises(BudgetReached):
        await judge(trial(tmp_path, address, budget_usd=3.5), prepared, answers)
    assert len(endpoint.prompts) == 3
    judgements, _ = await judge(trial(tmp_path, address, budget_usd=10), prepared, answers)
    assert len(judgements) == 20
    assert len(endpoint.prompts) == 10


async def test_an_answer_that_the_judge_cannot_read_is_missing_and_the_others_count(tmp_path: Path, address: str) -> None:
    prepared, answers = material("one", "hopeless", "three")
    judgements, _ = await judge(trial(tmp_path, address), prepared, answers)
    assert [row.score for row in judgements if row.contestant == "base"] == [4.0, None, 4.0]
    (missing,) = {row.error for row in judgements if row.score is None}
    assert missing == "judge_request_rejected"


async def test_a_failing_endpoint_stops_the_stage_and_keeps_what_was_paid(tmp_path: Path, address: str, endpoint: Endpoint) -> None:
    prepared, answers = material(*(f"answer {number}" for number in range(20)), "broken")
    with pytest.raises(TrialError):
        await judge(trial(tmp_path, address), prepared, answers)
    paid = [prompt for prompt in endpoint.prompts if "broken" not in prompt]
    endpoint.broken = False
    judgements, _ = await judge(trial(tmp_path, address), prepared, answers)
    assert all(row.score == 4.0 for row in judgements)
    asked = [prompt for prompt in endpoint.prompts if "broken" not in prompt]
    assert len(asked) == len(set(asked)) == 20
    assert len(paid) <= 20
