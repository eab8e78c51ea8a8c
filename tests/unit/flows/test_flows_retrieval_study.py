"""A study of retrieval over a retriever in memory: what is asked, what is kept, and what is said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_retriever import FakeRetriever, serving

from flows import persistence
from flows.clients import ServiceError
from flows.connections import Services
from flows.errors import UserError
from flows.fingerprint import Fingerprints
from flows.progress import Silent
from flows.retrieval_study.inputs import Study
from flows.retrieval_study.study import Finished, run_study
from flows.spec_file import load_study
from flows.store import Store

NAMES = ["Lomira", "Bakodu", "Tazopi", "Revuna", "Kisolo", "Dafepa", "Gonimu", "Zuteba", "Pilaro", "Nevoka", "Sumeti", "Fobara"]

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "WAITS_S", ())


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Twelve documents of two paragraphs; of each the second answers one question. Every question shares a word with all documents."""
    folder = tmp_path / "towns"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": name, "title": name, "text": f"is an old town.\n\nThe river of {name} is long."} for name in NAMES]
    queries = [{"_id": f"q{number}", "text": f"Which river is in {name}"} for number, name in enumerate(NAMES)]
    (folder / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in queries))
    judged = "".join(f"q{number}\t{name}\t2\nq{number}\t{NAMES[number - 1]}\t1\n" for number, name in enumerate(NAMES))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


@pytest.fixture
def fake() -> FakeRetriever:
    return FakeRetriever()


@pytest.fixture
async def run(tmp_path: Path, fake: FakeRetriever) -> AsyncIterator[Run]:
    async with serving(fake) as address:

        async def work(spec: Path | dict[str, Any]) -> Finished:
            path = spec if isinstance(spec, Path) else tmp_path / "study.yaml"
            if isinstance(spec, dict):
                path.write_text(yaml.safe_dump(spec))
            home = tmp_path / "home"
            services = Services({"retriever": address})
            study = Study(load_study(path), Store(str(home / "store")), services, Silent(), Fingerprints(home / "fingerprints.json"))
            try:
                return await run_study(study, tmp_path / "runs")
            finally:
                await services.close()

        yield work


def spec(beir: Path, **more: Any) -> dict[str, Any]:
    return {"name": "towns", "data": {"reader": "beir", "path": beir.name}, "retrieval": {"k": 3, "chunk": {"unit": "document"}}, **more}


def names(finished: Finished) -> list[str]:
    return [condition["name"] for condition in finished.report["conditions"]]


def measured(finished: Finished) -> list[Any]:
    """All that must not depend on how a study went."""
    return [[condition[key] for key in ("name", "index", "passages", "queries", "metrics")] for condition in finished.report["conditions"]]


async def test_a_folder_alone_is_measured_in_every_mode_and_reranking_is_left_out_where_it_cannot_be(run: Run, beir: Path) -> None:
    finished = await run(beir)
    assert names(finished) == ["lexical", "dense", "hybrid"]
    assert finished.report["left_out"] == ["hybrid + rerank"]
    assert finished.report["measure"] == {"name": "ndcg", "k": 10}
    assert (finished.report["asked"], finished.report["measured"]) == (12, 12)
    assert "TUNETRIAL_RERANKER" in (finished.folder / "retrieval.html").read_text()
    assert finished.folder.name.startswith("towns-retrieval-")


async def test_with_a_reranker_the_fourth_condition_is_measured_and_its_name_recorded(run: Run, beir: Path, fake: FakeRetriever) -> None:
    fake.reranker = "cross/encoder@abc"
    finished = await run(beir)
    assert names(finished)[-1] == "hybrid + rerank"
    assert (finished.report["left_out"], finished.report["reranker"]) == ([], "cross/encoder@abc")
    # The reranker of this retriever turns the order round.
    assert [difference["interval"] is not None for difference in finished.report["differences"]] == [True] * 3
    assert finished.report["differences"][-1]["mean"] < 0


@pytest.mark.parametrize(("where", "key"), [({"grid": {"rerank": [False, True]}}, "grid.rerank"), ({}, "retrieval.rerank")])
async def test_reranking_that_is_asked_for_by_name_and_missing_is_an_error_before_anything_is_indexed(
    run: Run, beir: Path, fake: FakeRetriever, where: dict[str, Any], key: str
) -> None:
    wanted = spec(beir, **where)
    if not where:
        wanted["retrieval"]["rerank"] = True
    with pytest.raises(UserError, match=rf"{key}: the retriever has no reranker\. Set TUNETRIAL_RERANKER"):
        await run(wanted)
    assert fake.calls["create"] == 0


async def test_repeated_it_searches_nothing_and_says_the_same(run: Run, beir: Path, fake: FakeRetriever) -> None:
    first = await run(spec(beir, grid={"mode": ["lexical", "dense"]}))
    before = fake.calls.copy()
    again = await run(spec(beir, grid={"mode": ["lexical", "dense"]}))
    assert fake.calls == before
    assert (again.again, again.report, again.folder) == (True, first.report, first.folder)


async def test_repeated_with_reranking_it_only_asks_whether_the_model_is_the_same(run: Run, beir: Path, fake: FakeRetriever) -> None:
    fake.reranker = "a@1"
    first = await run(beir)
    before = fake.calls.copy()
    assert (await run(beir)).again
    assert fake.calls - before == {"single": 1}
    fake.reranker = "b@2"
    other = await run(beir)
    assert (other.again, other.report["reranker"]) == (False, "b@2")
    assert other.folder != first.folder
    # Only what depends on the reranker was searched again.
    assert fake.calls["search SEARCH_MODE_HYBRID True"] == 2 * before["search SEARCH_MODE_HYBRID True"]
    assert fake.calls["search SEARCH_MODE_HYBRID False"] == before["search SEARCH_MODE_HYBRID False"]


async def test_a_reranker_that_came_later_is_not_overlooked(run: Run, beir: Path, fake: FakeRetriever) -> None:
    assert (await run(beir)).report["left_out"]
    fake.reranker = "late@1"
    assert names(await run(beir))[-1] == "hybrid + rerank"


async def test_a_study_that_broke_off_goes_on_and_ends_as_if_nothing_had_been(run: Run, beir: Path, fake: FakeRetriever) -> None:
    fake.lasts = 17
    with pytest.raises(ServiceError, match="goes on where it stopped"):
        await run(beir)
    fake.lasts = 10**9
    finished = await run(beir)
    # The condition that was done was not searched again, nor all of the one that broke off.
    assert fake.calls["search SEARCH_MODE_LEXICAL False"] == 12
    assert fake.calls["search"] < 17 + 3 * 12
    before = fake.calls["search"]
    for kept in ("home", "runs"):
        (beir.parent / kept).rename(beir.parent / f"disturbed-{kept}")
    undisturbed = await run(beir)
    assert fake.calls["search"] == before + 3 * 12
    assert measured(undisturbed) == measured(finished)


async def test_each_chunking_and_encoder_is_indexed_once_and_words_alone_are_searched_once(
    run: Run, beir: Path, fake: FakeRetriever
) -> None:
    for name in ("one", "two"):
        (beir.parent / name).mkdir()
        (beir.parent / name / "weights").write_text(name)
    grid = {"mode": ["lexical", "dense"], "chunk": [{"unit": "document"}, {"unit": "paragraph"}], "encoder": ["./one", "./two"]}
    finished = await run(spec(beir, grid=grid))
    assert names(finished) == [
        "lexical · document",
        "dense · document · one",
        "dense · document · two",
        "lexical · paragraph",
        "dense · paragraph · one",
        "dense · paragraph · two",
    ]
    assert fake.calls["create"] == 4
    assert len({condition["index"] for condition in finished.report["conditions"]}) == 4


async def test_conditions_that_search_alike_share_one_search(run: Run, beir: Path, fake: FakeRetriever) -> None:
    finished = await run(spec(beir, grid={"mode": "lexical", "k": [1, 3, 5]}))
    assert names(finished) == ["lexical · k 1", "lexical · k 3", "lexical · k 5"]
    assert fake.calls["search"] == 12


async def test_documents_that_are_cut_rank_by_their_best_passage(run: Run, beir: Path) -> None:
    whole = await run(spec(beir, grid={"mode": "lexical"}))
    cut = await run(spec(beir, grid={"mode": "lexical", "chunk": {"unit": "paragraph"}}))
    assert (whole.report["conditions"][0]["passages"], cut.report["conditions"][0]["passages"]) == (12, 24)
    # The second paragraph has the words that the whole document has, so the order of documents is the same.
    assert cut.report["conditions"][0]["metrics"] == whole.report["conditions"][0]["metrics"]
    assert not cut.report["notes"]


async def test_it_is_said_when_the_window_holds_too_few_documents(run: Run, beir: Path) -> None:
    wanted = spec(beir, grid={"mode": "lexical", "depths": [3]})
    wanted["retrieval"] = {"k": 3, "window": 3, "chunk": {"unit": "sentences", "window": 1}}
    corpus = [{"_id": name, "text": f"A river of {name}. " * 3} for name in NAMES]
    (beir / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in corpus))
    (note,) = (await run(wanted)).report["notes"]
    assert note.startswith("lexical: for 12 of 12 questions the passages searched are of fewer than 3 documents")
    assert "retrieval.window" in note


async def test_depths_beyond_the_corpus_are_measured_and_said(run: Run, beir: Path) -> None:
    finished = await run(spec(beir, grid={"mode": "lexical", "depths": [10, 100]}))
    assert finished.report["notes"] == ["an index holds 12 passages, fewer than the 100 asked for"]
    assert {metric["k"] for metric in finished.report["conditions"][0]["metrics"]} == {3, 10, 100}


async def test_a_file_that_changes_meanwhile_stops_the_report(
    run: Run, beir: Path, fake: FakeRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fake._found

    def change(request: Any) -> Any:
        (beir / "queries.jsonl").write_text((beir / "queries.jsonl").read_text() + '{"_id": "new", "text": "new"}\n')
        return found(request)

    monkeypatch.setattr(fake, "_found", change)
    with pytest.raises(UserError, match="was changed while the study ran"):
        await run(spec(beir, grid={"mode": "lexical"}))


async def test_a_trials_spec_is_measured_on_its_own_test_questions_without_its_models(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    rows = []
    for name in NAMES:
        (tmp_path / "texts" / f"{name}.md").write_text(f"# {name}\n\nThe town {name} is old.\n\nThe river of {name} is long.\n")
        rows.append(
            {"question": f"How is the river of {name}", "reference": "long", "gold": f"The river of {name} is long.", "cluster": name}
        )
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    trial = {
        "name": "towns",
        "data": {"reader": "table", "path": "questions.jsonl", "corpus": "texts", "test_items": 8},
        "models": {"absent": {"base": "./nowhere"}},
        "arms": {"a": {"model": "absent"}, "b": {"model": "absent", "rag": False}},
        "analysis": {"control": "a", "primary": {"arm": "b"}},
    }
    finished = await run(trial)
    assert (finished.report["counts"]["items"], finished.report["asked"], finished.report["measured"]) == (12, 8, 8)
    assert finished.report["conditions"][0]["k"] == 5
    del trial["data"]["test_items"]  # type: ignore[attr-defined]
    assert (await run(trial)).report["asked"] == 12


async def test_data_that_say_nothing_about_what_is_relevant_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("# A\n\nSome text.\n")
    (tmp_path / "questions.jsonl").write_text('{"question": "a?", "reference": "b"}\n')
    with pytest.raises(UserError, match="nothing to measure against"):
        await run({"name": "none", "data": {"reader": "table", "path": "questions.jsonl", "corpus": "texts"}})


async def test_two_corpora_with_one_id_are_refused(run: Run, beir: Path) -> None:
    sources = [{"reader": "beir", "path": beir.name}, {"reader": "beir", "path": f"./{beir.name}"}]
    with pytest.raises(UserError, match="two corpora hold a document with the id 'Lomira'"):
        await run({"name": "two", "data": {"sources": sources}})
