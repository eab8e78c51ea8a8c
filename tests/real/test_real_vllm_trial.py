"""A whole trial whose base and adapters answer on a real vLLM, beside a baseline that is asked by the OpenAI protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.trials import QUICKSTART, run_trial
from tests.real.vllm_server import VllmServer

pytestmark = [pytest.mark.timeout(2400), pytest.mark.usefixtures("prefect_api")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(QUICKSTART / "base", tmp_path_factory.mktemp("vllm"), rank=16)
    server.start()
    yield server
    server.kill()


def spec(**models: Any) -> dict[str, Any]:
    training = {"model": "small", "sizes": [32], "max_steps": 8, "batch_size": 8, "learning_rate": 5e-2, "lora": {"rank": 8}}
    arms = {"base": {"model": "small"}, "bare": {"adapter": "bare"}, "raft": {"adapter": "raft"}}
    arms |= {name: {"model": name} for name in models}
    return {
        "name": "engines",
        "data": {"reader": "bioasq", "path": str(QUICKSTART / "data" / "bioasq.json"), "test_items": 40, "seed": 1},
        "retrieval": {"mode": "lexical", "chunk": {"max_tokens": 80}},
        "models": {"small": {"base": str(QUICKSTART / "base")}, **models},
        "training": {"bare": {**training, "context": "none"}, "raft": {**training, "context": "raft"}},
        "decoding": {"max_tokens": 16},
        "arms": arms,
        "analysis": {"control": "base", "primary": {"arm": "raft", "size": 32}, "bootstrap": 1000},
    }


def answers(outcome: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by contestant and item."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in pq.read_table(Path(outcome["report"]).parent / "answers.parquet").to_pylist():
        found.setdefault(row["contestant"], {})[row["item"]] = row
    return found


def test_a_trial_on_vllm_gives_the_answers_of_one_in_process_and_of_the_same_model_as_a_baseline(
    server: VllmServer, tmp_path: Path
) -> None:
    engines = {"small": {"engine": "vllm", "urls": [server.url], "source": str(QUICKSTART / "base")}}
    baseline = {
        "engine": "openai",
        "url": f"{server.url}/v1",
        "model": "small",
        "api_key_variable": "",
        "price": {"input_usd": 2.5, "output_usd": 10.0},
    }
    (tmp_path / "vllm").mkdir()
    (tmp_path / "in-process").mkdir()
    outcome = run_trial(spec(outside=baseline), tmp_path / "vllm", engines=json.dumps(engines))
    assert outcome["sentence"].startswith("raft is ")
    on_vllm, in_process = answers(outcome), answers(run_trial(spec(), tmp_path / "in-process"))
    assert sorted(on_vllm) == ["bare-s1", "base", "outside", "raft-s1"]
    texts = {name: {item: row["text"] for item, row in rows.items()} for name, rows in on_vllm.items()}
    assert all(len(rows) == 40 for rows in texts.values())
    for name, rows in in_process.items():
        assert texts[name] == {item: row["text"] for item, row in rows.items()}
    assert texts["outside"] == texts["base"]
    assert texts["raft-s1"] != texts["base"] != texts["bare-s1"]
    # What the provider took is priced; what ran here has no price.
    paid = on_vllm["outside"].values()
    assert all(row["cost_usd"] == pytest.approx((2.5 * row["prompt_tokens"] + 10 * row["completion_tokens"]) / 1e6) for row in paid)
    assert {row["prompt_tokens"] for row in paid} == {row["prompt_tokens"] for row in on_vllm["base"].values()}
    assert all(row["cost_usd"] is None for row in on_vllm["base"].values())
    again = run_trial(spec(outside=baseline), tmp_path / "vllm", engines=json.dumps(engines))
    assert again["sentence"] == outcome["sentence"]
