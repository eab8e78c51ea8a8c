"""A whole trial through the command over a real Elasticsearch: undisturbed, and with the server killed while it writes and searches."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq
import pytest
import yaml

from tests.e2e.trials import QUICKSTART, start
from tests.real.elastic_node import Node
from tests.real.elastic_servers import ElasticServers
from tests.real.relay import relay

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_api")]

SPEC: dict[str, Any] = {
    "name": "real",
    "data": {"reader": "bioasq", "path": str(QUICKSTART / "data" / "bioasq.json"), "test_items": 60, "seed": 1},
    "retrieval": {"chunk": {"max_tokens": 80}},
    "models": {"small": {"base": str(QUICKSTART / "base")}},
    "training": {
        "raft": {"model": "small", "context": "raft", "sizes": [32], "max_steps": 4, "batch_size": 8, "learning_rate": 1e-3},
    },
    "decoding": {"max_tokens": 16},
    "arms": {"base": {"model": "small"}, "closed-book": {"model": "small", "rag": False}, "raft": {"adapter": "raft"}},
    "analysis": {"control": "base", "primary": {"arm": "raft", "size": 32}, "bootstrap": 1000},
}


@pytest.fixture(scope="module")
def undisturbed(elastic_servers: ElasticServers, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of the trial, and its index, on a server with security."""
    with elastic_servers.running("9", secured=True) as node:
        with Run(tmp_path_factory.mktemp("undisturbed"), node.client_settings("api-key")) as run:
            outcome, _ = run.finish()
        return results(outcome), sealed_index(node)


class Run:
    """The command at work on SPEC; `elasticsearch` are settings by their names without the prefix."""

    def __init__(self, folder: Path, elasticsearch: dict[str, str]) -> None:
        (folder / "trial.yaml").write_text(yaml.safe_dump(SPEC))
        settings = {f"elasticsearch_{name}": value for name, value in elasticsearch.items()}
        self.folder, self.process = folder, start("run", "trial.yaml", cwd=folder, ingest_batch="16", **settings)
        self._out: tuple[str, str] = ("", "")
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()  # no more than a formality after an end of its own
        self._reading.join()

    def _read(self) -> None:
        self._out = self.process.communicate()

    def wait(self, moment: threading.Event) -> None:
        """Returns when it has come; fails when the command ends before."""
        while not moment.wait(0.1):
            assert self._reading.is_alive(), self._out

    def finish(self) -> tuple[dict[str, Any], str]:
        """The outcome, and what the command said meanwhile."""
        self._reading.join()
        out, err = self._out
        assert self.process.returncode == 0, out + err
        (path,) = self.folder.glob("runs/*/outcome.json")
        outcome: dict[str, Any] = json.loads(path.read_text())
        return outcome, err


def results(outcome: dict[str, Any]) -> Any:
    """All that must not depend on what happened to the server."""
    folder = Path(outcome["folder"])
    answers = [
        {name: row[name] for name in ("contestant", "item", "text", "prompt_hash", "passages")}
        for row in pq.read_table(folder / "answers.parquet").to_pylist()
    ]
    judgements = [
        {name: row[name] for name in ("contestant", "item", "criterion", "run", "score")}
        for row in pq.read_table(folder / "judgements.parquet").to_pylist()
    ]
    return outcome["sentence"], outcome["also"], answers, judgements


def sealed_index(node: Node) -> tuple[str, int, str]:
    """Name, size and content hash of the one index there is."""
    (found,) = node.ask("GET", "/tunetrial-*").json().values()
    index = found["mappings"]["_meta"]["tunetrial"]
    assert index["seal_time"]
    return index["name"], index["passage_count"], index["content_hash"]


def test_a_trial_runs_on_elasticsearch(undisturbed: Any) -> None:
    (sentence, _, answers, judgements), (_, passage_count, _) = undisturbed
    assert sentence.startswith("raft is ")
    assert passage_count > 100
    assert len(answers) == 3 * 60
    assert judgements
    # Retrieval was at work: the arms with passages were shown some, the other none.
    shown = {arm: sum(len(row["passages"]) for row in answers if row["contestant"].startswith(arm)) for arm in ("base", "closed")}
    assert shown["base"] >= 60
    assert shown["closed"] == 0


def test_a_trial_ends_the_same_on_a_server_that_is_killed_while_it_writes_and_while_it_searches(
    elastic_servers: ElasticServers, undisturbed: Any, tmp_path: Path
) -> None:
    def kill(moment: threading.Event) -> Callable[[], None]:
        def now() -> None:
            node.kill()
            moment.set()

        return now

    writing, searching = threading.Event(), threading.Event()
    with elastic_servers.running("8") as node, relay(node.port) as wire:
        wire.at("_bulk", 4, kill(writing))
        wire.at("_msearch", 3, kill(searching))
        with Run(tmp_path, {"urls": wire.url}) as run:
            for moment in (writing, searching):
                run.wait(moment)
                node.start()
            outcome, said = run.finish()
        assert (results(outcome), sealed_index(node)) == undisturbed
    assert "Elasticsearch is away" in said
