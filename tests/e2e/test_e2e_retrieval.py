"""Retrieval measured through the command, on the real retriever with a real (untrained) cross-encoder."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest
import yaml
from trials import QUICKSTART, finish, run_trial, start
from tunetrial.retriever.v1 import retriever_pb2 as pb
from tunetrial.retriever.v1 import retriever_pb2_grpc

from examples.retrieval.make_data import Collection, collect, write
from tests.contract.retriever.tiny_models import cross_encoder

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_api")]

CONDITIONS = ["lexical", "dense", "hybrid", "hybrid + rerank"]
MODES = {"lexical": pb.SEARCH_MODE_LEXICAL, "dense": pb.SEARCH_MODE_DENSE, "hybrid": pb.SEARCH_MODE_HYBRID}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 286 paragraphs and their questions."""
    whole = collect()
    part = Collection(
        tuple(row for row in whole.corpus if row["_id"].startswith("bioasq")),
        tuple(one for one in whole.questions if one.id.startswith("bioasq")),
    )
    found = tmp_path_factory.mktemp("beir") / "drugs"
    write(found, part)
    return found


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(cross_encoder(tmp_path_factory.mktemp("reranker")))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, reranker: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where the folder was measured, and what came out."""
    place = tmp_path_factory.mktemp("undisturbed")
    code, out, err = finish("retrieval", str(folder), "--json", cwd=place, reranker=reranker)
    assert code == 0, out + err
    return place, json.loads(out)


def results(found: dict[str, Any]) -> Any:
    """All that must not depend on how often the study was stopped."""
    conditions = [[one[key] for key in ("name", "index", "passages", "queries", "metrics")] for one in found["conditions"]]
    return conditions, found["differences"], found["sentence"], found["reranker"], found["notes"]


def test_a_beir_folder_is_measured_in_four_ways_and_repeated_it_searches_nothing(
    folder: Path, reranker: str, undisturbed: tuple[Path, dict[str, Any]]
) -> None:
    place, found = undisturbed
    assert [condition["name"] for condition in found["conditions"]] == CONDITIONS
    assert found["reranker"].startswith(f"{reranker}@")
    kept = sorted((place / ".tunetrial" / "store").rglob("*"))
    code, out, err = finish("retrieval", str(folder), cwd=place, reranker=reranker)
    assert code == 0, err
    assert sorted((place / ".tunetrial" / "store").rglob("*")) == kept
    assert "nothing was searched" in out
    for condition in found["conditions"]:
        ndcg = next(metric["mean"] for metric in condition["metrics"] if (metric["name"], metric["k"]) == ("ndcg", 10))
        (line,) = (line for line in out.splitlines() if line.startswith(f"{condition['name']}  "))
        assert f"{ndcg:.3f}" in line
    # Words and meaning find these paragraphs; a reranker of random weights only stirs what they found.
    means = {one["name"]: next(m["mean"] for m in one["metrics"] if (m["name"], m["k"]) == ("ndcg", 10)) for one in found["conditions"]}
    assert min(means["lexical"], means["hybrid"]) > 0.6 > means["hybrid + rerank"]
    assert {path.name for path in Path(found["folder"]).iterdir()} == {
        "retrieval.html",
        "retrieval.json",
        "conditions.csv",
        "differences.csv",
        "questions.csv",
    }


async def test_the_figures_are_those_of_searches_made_and_measured_by_hand(
    home: Path, folder: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    code, out, err = finish("retrieval", str(folder), "--json", "--home", str(home), cwd=tmp_path)
    assert code == 0, out + err
    found = json.loads(out)
    assert found["left_out"] == ["hybrid + rerank"]
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        judged.setdefault(query, {})[document] = int(score)
    texts = {row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").read_text().splitlines())}
    address = json.loads((home / "stack.json").read_text())["retriever"]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = retriever_pb2_grpc.RetrieverServiceStub(channel)

        async def ndcg(query: str, mode: pb.SearchMode.ValueType, index: str) -> float:
            settings = pb.SearchSettings(mode=mode, k=10, window=50)
            response = await stub.Search(pb.SearchRequest(index=index, query=texts[query], settings=settings))
            gains = [judged[query].get(hit.passage.document, 0) for hit in response.hits]
            best = sorted(judged[query].values(), reverse=True)[:10]
            dcg, ideal = (sum(gain / math.log2(place + 2) for place, gain in enumerate(row)) for row in (gains, best))
            return dcg / ideal

        for condition in found["conditions"]:
            values = await asyncio.gather(*(ndcg(query, MODES[condition["mode"]], condition["index"]) for query in judged))
            told = next(metric["mean"] for metric in condition["metrics"] if (metric["name"], metric["k"]) == ("ndcg", 10))
            assert told == pytest.approx(sum(values) / len(values))
    # The same corpus elsewhere gives the same figures.
    assert [results(found)[0][place] for place in range(3)] == [results(undisturbed[1])[0][place] for place in range(3)]


def following(process: subprocess.Popen[str], todo: dict[str, Callable[[], None]]) -> str:
    """Follows the command's standard error and does what `todo` says when a line begins with its key; returns all of it."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        for begin in [begin for begin in todo if line.startswith(begin)]:
            threading.Thread(target=todo.pop(begin)).start()
    assert not todo, f"never seen: {list(todo)}\n{''.join(seen)}"
    return "".join(seen)


def test_a_study_survives_the_kill_of_its_retriever_ctrl_c_and_its_own_kill(
    folder: Path, reranker: str, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    home = tmp_path / ".tunetrial"

    killed: list[int] = []

    def pid() -> int:
        return int((home / "retriever" / "pid").read_text())

    def kill_retriever() -> None:
        killed.append(pid())
        os.kill(killed[-1], signal.SIGKILL)

    def again() -> subprocess.Popen[str]:
        return start("retrieval", str(folder), cwd=tmp_path, reranker=reranker)

    study = again()
    said = following(study, {"search lexical: begins": kill_retriever, "search dense: begins": lambda: study.send_signal(signal.SIGINT)})
    assert study.wait(timeout=60) == 130, said
    assert "run the same command again" in said
    assert "Traceback" not in said

    study = again()
    following(study, {"search hybrid + rerank: begins": study.kill})
    assert study.wait(timeout=60) == -signal.SIGKILL

    study = again()
    said = following(study, {"search hybrid + rerank: begins": kill_retriever})
    assert study.wait(timeout=60) == 0, said
    # Killed before it was asked it is started anew without a word, else with one.
    assert pid() != killed[-1]
    # What was done before the kill was not done again.
    assert "search lexical" not in said
    code, out, err = finish("retrieval", str(folder), "--json", cwd=tmp_path, reranker=reranker)
    assert code == 0, err
    assert results(json.loads(out)) == results(undisturbed[1])


def test_a_trial_reranks_what_it_shows_and_its_report_says_so(reranker: str, tmp_path: Path) -> None:
    spec = {
        "name": "reranked",
        "data": {"reader": "bioasq", "path": str(QUICKSTART / "data" / "bioasq.json"), "test_items": 24},
        "retrieval": {"chunk": {"max_tokens": 80}, "rerank": True},
        "models": {"small": {"base": str(QUICKSTART / "base")}},
        "decoding": {"max_tokens": 16},
        "arms": {"base": {"model": "small"}, "closed-book": {"model": "small", "rag": False}},
        "analysis": {"control": "base", "primary": {"arm": "closed-book"}, "bootstrap": 1000},
    }
    outcome = run_trial(spec, tmp_path, reranker=reranker)
    report = json.loads((Path(outcome["folder"]) / "report.json").read_text())
    assert report["reranker"].startswith(f"{reranker}@")
    hits = pq.read_table(Path(outcome["folder"]) / "hits.parquet").to_pylist()
    by_item: dict[str, list[float]] = {}
    for hit in sorted(hits, key=lambda hit: hit["rank"]):
        by_item.setdefault(hit["item"], []).append(hit["rerank_score"])
    assert all(scores == sorted(scores, reverse=True) for scores in by_item.values())
    assert "reordered by the cross-encoder" in (Path(outcome["folder"]) / "report.html").read_text()
    # The study of the same file measures the same retrieval.
    study = {**spec, "retrieval": {**spec["retrieval"]}}  # type: ignore[dict-item]
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(study))
    code, out, err = finish("retrieval", "trial.yaml", "--json", cwd=tmp_path, reranker=reranker)
    assert code == 0, out + err
    measured = next(one for one in json.loads(out)["conditions"] if one["name"] == "hybrid + rerank")["metrics"]
    of_trial = {(metric["name"], metric["k"]): metric["mean"] for metric in report["retrieval"]["metrics"]}
    of_study = {(metric["name"], metric["k"]): metric["mean"] for metric in measured}
    assert of_trial == pytest.approx({key: of_study[key] for key in of_trial})
    assert all(metric["interval"] is not None for metric in report["retrieval"]["metrics"])


def test_reranking_that_is_wanted_and_missing_ends_with_the_setting_to_set(home: Path, folder: Path, tmp_path: Path) -> None:
    study = {"name": "wanted", "data": {"reader": "beir", "path": str(folder)}, "grid": {"rerank": True}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    code, out, err = finish("retrieval", "study.yaml", "--home", str(home), cwd=tmp_path)
    assert (code, out) == (2, "")
    assert "grid.rerank: the retriever has no reranker. Set TUNETRIAL_RERANKER" in " ".join(err.split())
