"""Batching over callers, with a model that only counts; the real model runs in the contract tests."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from services.common.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted
from services.retriever.encoder import SentenceEncoder, SentenceEncoders


class Model:
    """Vector of a text: its length. The first batch waits until told, so that others gather behind it."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []
        self.go = threading.Event()

    def encode_query(self, texts: list[str], **_: Any) -> Any:
        self.batches.append(tuple(texts))
        self.go.wait(10)
        if "nan" in texts:
            return np.full((len(texts), 1), np.nan, np.float32)
        return np.array([[len(text)] for text in texts], np.float32)

    encode_document = encode_query


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def encoder(model: Model) -> SentenceEncoder:
    return SentenceEncoder(model, ThreadPoolExecutor(1), batch_size=4, max_queue=8, fingerprint="f")  # type: ignore[arg-type]


async def begun(model: Model) -> None:
    while not model.batches:  # noqa: ASYNC110  the model runs in a thread
        await asyncio.sleep(0.001)


async def test_queries_that_come_while_the_model_works_share_the_next_batch(model: Model, encoder: SentenceEncoder) -> None:
    first = asyncio.create_task(encoder.queries(["first"]))
    await begun(model)
    others = [asyncio.create_task(encoder.queries([text])) for text in ("a", "bb", "ccc")]
    await asyncio.sleep(0)
    model.go.set()
    assert [np.frombuffer((await task).data, np.float32)[0] for task in (first, *others)] == [5, 1, 2, 3]
    assert model.batches == [("first",), ("a", "bb", "ccc")]


async def test_queries_go_before_passages_that_wait(model: Model, encoder: SentenceEncoder) -> None:
    passages = asyncio.create_task(encoder.passages([f"passage {n}" for n in range(8)]))
    await begun(model)
    query = asyncio.create_task(encoder.queries(["query"]))
    await asyncio.sleep(0)
    model.go.set()
    await asyncio.gather(passages, query)
    assert [len(batch) for batch in model.batches] == [4, 1, 4]
    assert model.batches[1] == ("query",)


async def test_vectors_come_back_in_the_order_of_the_texts(model: Model, encoder: SentenceEncoder) -> None:
    model.go.set()
    texts = ["four", "a", "seven..", "two", "", "eleven-----"]
    vectors = await encoder.passages(texts)
    assert np.frombuffer(vectors.data, np.float32).tolist() == [len(text) for text in texts]
    assert (len(vectors), vectors.dimensions) == (6, 1)


async def test_a_caller_who_left_costs_nothing(model: Model, encoder: SentenceEncoder) -> None:
    first = asyncio.create_task(encoder.queries(["first"]))
    await begun(model)
    gone = asyncio.create_task(encoder.queries(["gone"]))
    stays = asyncio.create_task(encoder.queries(["stays"]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    model.go.set()
    await asyncio.gather(first, stays)
    assert model.batches == [("first",), ("stays",)]


async def test_a_full_queue_refuses_at_once(model: Model, encoder: SentenceEncoder) -> None:
    tasks = [asyncio.create_task(encoder.queries(["x"]))]
    await begun(model)
    tasks += [asyncio.create_task(encoder.queries(["x"])) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="wait for the encoder"):
        await encoder.queries(["one too many"])
    model.go.set()
    await asyncio.gather(*tasks)


async def test_numbers_that_are_not_finite_are_an_error_and_the_next_call_works(model: Model, encoder: SentenceEncoder) -> None:
    model.go.set()
    with pytest.raises(Internal, match="not finite"):
        await encoder.queries(["nan"])
    assert len(await encoder.queries(["fine"])) == 1


def encoders(uri_roots: str = "") -> SentenceEncoders:
    return SentenceEncoders(default="m", device="cpu", threads=1, batch_size=1, max_loaded=2, max_queue=1, uri_roots=uri_roots)


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "http://x/y", "https://x"])
async def test_what_is_no_model_name_is_refused_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(InvalidArgument, match="neither a model name"):
        await encoders().get(name)


async def test_a_path_outside_the_roots_is_refused(tmp_path: Any) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InvalidArgument, match="TUNETRIAL_URI_ROOTS"):
        await encoders(str(tmp_path / "in")).get(str(tmp_path / "in" / ".." / "out"))


async def test_a_folder_in_the_way_of_a_model_name_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match="also a folder here"):
        await encoders().get("owner/model")


async def test_a_model_that_failed_to_load_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Any] = [OSError("no network"), (type("M", (), {"max_seq_length": 9})(), "f")]

    def load(*_: object) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("services.retriever.encoder._load_model", load)
    held = encoders()
    both = await asyncio.gather(held.get("m"), held.get("m"), return_exceptions=True)
    assert all(isinstance(each, FailedPrecondition) and each.reason == "ENCODER_UNAVAILABLE" for each in both)
    assert await held.get("m") is await held.get("m")


async def test_the_encoder_unused_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.retriever.encoder._load_model", lambda *_: (type("M", (), {"max_seq_length": None})(), "f"))
    held = encoders()
    a, b = await held.get("a"), await held.get("b")
    assert (a.fingerprint, a.max_tokens) == ("f", 0)
    assert await held.get("a") is a
    await held.get("c")
    assert await held.get("a") is a
    assert await held.get("b") is not b
