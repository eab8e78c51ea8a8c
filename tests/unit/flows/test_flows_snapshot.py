"""The snapshot of a trial with reranking, over a retriever in memory: what decides its key, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_retriever import FakeRetriever, serving

from flows.connections import Services
from flows.errors import TrialError, UserError
from flows.progress import Silent
from flows.spec_file import load
from flows.stages.prepare import prepare
from flows.stages.snapshot import Snapshot, check_reranker, snapshot
from flows.store import Store
from flows.trial import Trial

BASE = Path(__file__).parents[3] / "examples" / "quickstart" / "base"
NAMES = ["Lomira", "Bakodu", "Tazopi", "Revuna", "Kisolo", "Dafepa"]

Take = Callable[..., Awaitable[Snapshot]]


@pytest.fixture
def fake() -> FakeRetriever:
    return FakeRetriever(reranker="cross@1")


@pytest.fixture
async def take(tmp_path: Path, fake: FakeRetriever) -> AsyncIterator[Take]:
    """Takes a snapshot with these settings of retrieval."""
    (tmp_path / "texts").mkdir()
    rows = []
    for name in NAMES:
        (tmp_path / "texts" / f"{name}.md").write_text(f"# {name}\n\nThe town {name} is old.\n\nThe river of {name} is long.\n")
        rows.append({"question": f"How long is the river of {name}?", "reference": "long", "cluster": name})
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    async with serving(fake) as address:

        async def work(**retrieval: Any) -> Snapshot:
            spec = {
                "name": "towns",
                "data": {"reader": "table", "path": "questions.jsonl", "corpus": "texts", "test_items": 6},
                "retrieval": retrieval,
                "models": {"small": {"base": str(BASE)}},
                "arms": {"a": {"model": "small"}, "b": {"model": "small", "rag": False}},
                "analysis": {"control": "a", "primary": {"arm": "b"}},
            }
            (tmp_path / "trial.yaml").write_text(yaml.safe_dump(spec))
            services = Services({"retriever": address})
            trial = Trial(load(tmp_path / "trial.yaml"), tmp_path, Store(str(tmp_path / "store")), services, Silent())
            try:
                return await snapshot(trial, await prepare(trial))
            finally:
                await services.close()

        yield work


async def test_reranking_goes_with_the_search_and_the_scores_and_the_model_are_recorded(take: Take, tmp_path: Path) -> None:
    plain, reranked = await take(), await take(rerank=True)
    assert (plain.reranker, reranked.reranker) == ("", "cross@1")
    assert all(hit.rerank_score is None for hit in plain.hits)
    assert all(hit.rerank_score is not None for hit in reranked.hits)
    assert [hit.passage for hit in plain.hits] != [hit.passage for hit in reranked.hits]
    kept = json.loads((tmp_path / "store" / "snapshots" / reranked.key / "inputs.json").read_text())
    assert (kept["reranker"], kept["settings"]["rerank"]) == ("cross@1", True)


async def test_reranking_and_the_model_decide_the_key_and_nothing_is_searched_twice(take: Take, fake: FakeRetriever) -> None:
    plain, reranked = await take(), await take(rerank=True)
    assert plain.key != reranked.key
    before = fake.calls["search"]
    assert (await take(rerank=True)).key == reranked.key
    assert (await take()).key == plain.key
    assert fake.calls["search"] == before
    fake.reranker = "cross@2"
    other = await take(rerank=True)
    assert other.key not in (plain.key, reranked.key)
    assert fake.calls["search"] == before + len(NAMES)
    assert (await take()).key == plain.key


async def test_a_retriever_without_a_reranker_is_said_before_anything_is_indexed(take: Take, fake: FakeRetriever) -> None:
    fake.reranker = ""
    with pytest.raises(UserError, match=r"retrieval\.rerank: the retriever has no reranker\. Set TUNETRIAL_RERANKER"):
        await take(rerank=True)
    assert fake.calls["create"] == 0


async def test_whether_there_is_a_reranker_is_known_without_an_index(fake: FakeRetriever) -> None:
    async with serving(fake) as address:
        services = Services({"retriever": address})
        await check_reranker(services, "retrieval.rerank")
        fake.reranker = ""
        with pytest.raises(UserError, match=r"retrieval\.rerank: the retriever has no reranker"):
            await check_reranker(services, "retrieval.rerank")
        await services.close()


async def test_a_retriever_that_does_not_say_by_what_it_reranked_is_refused(
    take: Take, fake: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fake._found

    def silent(request: Any) -> Any:
        response = found(request)
        response.reranker = ""
        return response

    monkeypatch.setattr(fake, "_found", silent)
    with pytest.raises(TrialError, match="did not say by what"):
        await take(rerank=True)
