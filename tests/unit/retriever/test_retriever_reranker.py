"""Batching of pairs over callers, with a model that only counts, and which models are taken; a real model runs in the contract tests."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.errors import FailedPrecondition, Internal, ResourceExhausted, Unavailable
from services.retriever.reranker import SentenceReranker


class Model:
    """Score of a pair: the length of its text. The first batch waits until told, so that others gather behind it."""

    max_seq_length = 9

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, str]]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> Any:
        if pairs != [("warm up", "warm up")]:
            self.batches.append(pairs)
            self.threads.add(threading.get_ident())
            self.go.wait(10)
        return np.array([np.nan if text == "nan" else len(text) for _, text in pairs], np.float32)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def reranker(model: Model, monkeypatch: pytest.MonkeyPatch) -> SentenceReranker:
    monkeypatch.setattr("services.retriever.reranker._load_model", lambda *_: (model, "f1"))
    made = make("model")
    await made.prepare()
    return made


def make(name: str) -> SentenceReranker:
    return SentenceReranker(name, device="cpu", threads=1, batch_size=4, max_queue=12, executor=ThreadPoolExecutor(1))


async def begun(model: Model) -> None:
    while not model.batches:  # noqa: ASYNC110  the model runs in a thread
        await asyncio.sleep(0.001)


async def test_pairs_of_callers_that_come_while_the_model_works_share_batches_by_length(model: Model, reranker: SentenceReranker) -> None:
    first = asyncio.create_task(reranker.scores("q", ["first"]))
    await begun(model)
    others = [asyncio.create_task(reranker.scores(query, ["aaaaaa", "b" * n, "cc"])) for n, query in enumerate(("q1", "q2"), 3)]
    await asyncio.sleep(0)
    model.go.set()
    assert await first == [5]
    assert [await task for task in others] == [[6, 3, 2], [6, 4, 2]]
    assert [[len(text) for _, text in batch] for batch in model.batches] == [[5], [2, 2, 3, 4], [6, 6]]
    assert {query for query, _ in model.batches[1]} == {"q1", "q2"}


async def test_the_model_works_in_the_thread_of_the_device_and_not_in_that_of_the_loop(model: Model, reranker: SentenceReranker) -> None:
    model.go.set()
    await asyncio.gather(*(reranker.scores("q", ["a"]) for _ in range(5)))
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


async def test_a_full_queue_refuses_at_once_and_takes_pairs_again_when_it_is_empty(model: Model, reranker: SentenceReranker) -> None:
    waiting = asyncio.create_task(reranker.scores("q", ["x"] * 11))
    await begun(model)
    with pytest.raises(ResourceExhausted, match="wait for the reranker") as caught:
        await reranker.scores("q", ["x", "x"])
    assert caught.value.reason == "RERANKER_QUEUE_FULL"
    model.go.set()
    await waiting
    assert await reranker.scores("q", ["x"] * 12) == [1.0] * 12


async def test_a_caller_who_left_costs_nothing_and_gives_its_places_back(model: Model, reranker: SentenceReranker) -> None:
    first = asyncio.create_task(reranker.scores("q", ["first"]))
    await begun(model)
    gone = asyncio.create_task(reranker.scores("gone", ["x"] * 11))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    stays = asyncio.create_task(reranker.scores("stays", ["x"] * 11))
    await asyncio.sleep(0)
    model.go.set()
    await asyncio.gather(first, stays)
    assert {query for batch in model.batches for query, _ in batch} == {"q", "stays"}


async def test_a_number_that_is_not_finite_is_an_error_for_its_caller_alone(model: Model, reranker: SentenceReranker) -> None:
    model.go.set()
    broken, fine = await asyncio.gather(reranker.scores("q", ["nan", "x"]), reranker.scores("q", ["fine"]), return_exceptions=True)
    assert isinstance(broken, Internal)
    assert broken.reason == "RERANKER_OUTPUT_INVALID"
    assert fine == [4]


async def test_before_it_is_loaded_a_reranker_says_so() -> None:
    with pytest.raises(Unavailable, match="being loaded"):
        await make("model").scores("q", ["x"])


async def test_the_identity_is_name_and_fingerprint(reranker: SentenceReranker) -> None:
    assert reranker.identity == "model@f1"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["BertModel"]}, "saved as BertModel, without a layer for scores"),
        ({}, "something unknown"),
    ],
)
async def test_a_model_whose_scores_would_be_made_up_is_refused(tmp_path: Path, config: dict[str, object], why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FailedPrecondition, match=why) as caught:
        await make(str(tmp_path)).prepare()
    assert caught.value.reason == "RERANKER_UNAVAILABLE"


async def test_a_folder_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(FailedPrecondition, match="reranker /no/such/folder cannot be loaded: there is no such folder"):
        await make("/no/such/folder").prepare()
