"""A trial that is killed again and again ends with the results of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from trials import QUICKSTART, finish, run_trial, start, wait_for

pytestmark = [pytest.mark.timeout(3000), pytest.mark.usefixtures("prefect_api")]

SPEC: dict[str, Any] = {
    "name": "killed",
    "data": {"reader": "bioasq", "path": str(QUICKSTART / "data" / "bioasq.json"), "test_items": 60, "seed": 1},
    "retrieval": {"chunk": {"max_tokens": 80}},
    "models": {"small": {"base": str(QUICKSTART / "base")}},
    "training": {
        name: {"model": "small", "context": context, "sizes": [32], "epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
        for name, context in (("bare", "none"), ("raft", "raft"))
    },
    "decoding": {"max_tokens": 16},
    "arms": {"base": {"model": "small"}, "bare": {"adapter": "bare"}, "raft": {"adapter": "raft"}},
    "analysis": {"control": "base", "primary": {"arm": "raft", "size": 32}, "bootstrap": 1000},
}


def results(outcome: dict[str, Any]) -> Any:
    """All that must not depend on how often the trial was killed."""
    folder = Path(outcome["folder"])
    answers = [
        {name: row[name] for name in ("contestant", "item", "text", "prompt_hash", "passages", "prompt_tokens", "completion_tokens")}
        for row in pq.read_table(folder / "answers.parquet").to_pylist()
    ]
    judgements = [
        {name: row[name] for name in ("contestant", "item", "criterion", "run", "score")}
        for row in pq.read_table(folder / "judgements.parquet").to_pylist()
    ]
    return outcome["sentence"], outcome["also"], answers, judgements


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def pids(home: Path) -> Iterator[int]:
    for path in home.glob("*/pid"):
        yield int(path.read_text())


def kill_at(process: subprocess.Popen[str], lines: dict[str, Any]) -> str:
    """Follows the command's standard error and does what `lines` says when a line begins with its key; returns all of it."""
    assert process.stderr is not None
    seen = []
    todo = dict(lines)
    for line in process.stderr:
        seen.append(line)
        for begin in [begin for begin in todo if line.startswith(begin)]:
            threading.Thread(target=todo.pop(begin)).start()
    assert not todo, f"never seen: {list(todo)}\n{''.join(seen)}"
    return "".join(seen)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return results(run_trial(SPEC, tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to see whether a process lives")
def test_a_trial_survives_ctrl_c_and_the_kill_of_its_flow_and_of_every_service(
    undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(SPEC))
    home = tmp_path / ".tunetrial"

    with monkeypatch.context() as own:
        # Prefect's API as well is a process of the command, and ends with it.
        own.delenv("PREFECT_API_URL")
        flow = start("run", "trial.yaml", cwd=tmp_path)
    said = kill_at(flow, {"snapshot: begins": lambda: flow.send_signal(signal.SIGINT)})
    assert flow.wait(timeout=60) == 130
    assert "run the same command again" in said
    assert "Traceback" not in said

    flow = start("run", "trial.yaml", cwd=tmp_path)

    def kill_flow() -> None:
        time.sleep(2)
        flow.kill()

    kill_at(flow, {"train: begins": kill_flow})
    assert flow.wait(timeout=60) == -signal.SIGKILL
    # Nothing is left behind: the services end with the process that started them.
    wait_for(lambda: not any(alive(pid) for pid in pids(home)))

    def kill(service: str, after: float) -> Any:
        def now() -> None:
            time.sleep(after)
            os.kill(int((home / service / "pid").read_text()), signal.SIGKILL)

        return now

    # The retriever's part is done, so its index is taken away: it must be made anew, and is killed over that.
    for path in (home / "store" / "snapshots").glob("*/inputs.json"):
        path.unlink()
    again = start("run", "trial.yaml", cwd=tmp_path)
    said = kill_at(
        again,
        {
            "snapshot: begins": kill("retriever", 0.0),
            "train: begins": kill("trainer", 2.0),
            "answer: begins": kill("generator", 0.5),
            "judge: begins": kill("judge", 0.1),
        },
    )
    assert again.wait(timeout=120) == 0, said

    code, out, err = finish("run", "trial.yaml", "--json", cwd=tmp_path)
    assert code == 0, err
    assert results(json.loads(out)) == undisturbed
