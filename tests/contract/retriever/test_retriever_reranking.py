"""Reranking seen from the wire, on each store of conftest.STORES, against CrossEncoder.predict called directly on the same pairs."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import tiny_models
from retriever_client import Client, passage, refused
from retriever_server import served
from sentence_transformers import CrossEncoder
from tunetrial.common.v1 import common_pb2
from tunetrial.retriever.v1 import retriever_pb2 as pb

from services.common.errors import FailedPrecondition
from services.retriever.domain import Indexes
from services.retriever.encoder import SentenceEncoders
from services.retriever.model_files import fingerprint
from services.retriever.reranker import SentenceReranker

LEXICAL, DENSE, HYBRID = pb.SEARCH_MODE_LEXICAL, pb.SEARCH_MODE_DENSE, pb.SEARCH_MODE_HYBRID
MODES = pytest.mark.parametrize("mode", [LEXICAL, DENSE, HYBRID], ids=["lexical", "dense", "hybrid"])
WINDOW = 12
QUERY = "which passage is about the queen and the tide"


def corpus() -> list[common_pb2.Passage]:
    words = ["bee", "moon", "tea", "water", "egg", "leaf", "tide", "queen", "flower", "ocean"]
    texts = (" ".join(words[(n * step) % 10] for step in (1, 3, 7, 9)) for n in range(40))
    return [passage(f"p{n:02}", f"{text} passage {n} {'and more ' * (n % 5)}", f"d{n % 2}") for n, text in enumerate(texts)]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.cross_encoder(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="session")
def directly(model_folder: Path) -> CrossEncoder:
    return CrossEncoder(str(model_folder), device="cpu", model_kwargs={"use_safetensors": True})


def make(folder: Path, encoders: SentenceEncoders, max_queue: int = 1000) -> SentenceReranker:
    return SentenceReranker(str(folder), device="cpu", threads=1, batch_size=4, max_queue=max_queue, executor=encoders.executor)


@asynccontextmanager
async def serving(store: Indexes, encoders: SentenceEncoders, reranker: SentenceReranker) -> AsyncIterator[Client]:
    async with served(store, encoders, reranker=reranker, rerank_window=WINDOW) as stub:
        yield Client(stub)


@pytest.fixture
async def reranking(store: Indexes, encoders: SentenceEncoders, model_folder: Path) -> AsyncIterator[Client]:
    reranker = make(model_folder, encoders)
    await reranker.prepare()
    async with serving(store, encoders, reranker) as client:
        await client.made(corpus())
        yield client


@MODES
async def test_the_first_passages_come_in_the_order_of_the_cross_encoder_and_the_others_keep_theirs(
    reranking: Client, directly: CrossEncoder, mode: pb.SearchMode.ValueType
) -> None:
    before = await reranking.search(QUERY, mode, k=40)
    after = await reranking.search(QUERY, mode, k=40, rerank=True)
    assert len(before) > WINDOW
    pairs = [(QUERY, hit.passage.text) for hit in before[:WINDOW]]
    order = directly.predict(pairs).argsort()[::-1].tolist()
    assert order != sorted(order)  # the cross-encoder has something to say
    assert [hit.passage.id for hit in after] == [before[n].passage.id for n in (*order, *range(WINDOW, len(before)))]
    assert [hit.rank for hit in after] == list(range(1, len(before) + 1))
    outputs = directly.predict(pairs, activation_fn=lambda output: output)
    assert [hit.rerank_score for hit in after[:WINDOW]] == pytest.approx([outputs[n] for n in order], abs=1e-4)
    assert all(hit.score == hit.rerank_score for hit in after[:WINDOW])
    assert not any(hit.HasField("rerank_score") for hit in (*after[WINDOW:], *before))
    assert [hit.score for hit in after[WINDOW:]] == [hit.score for hit in before[WINDOW:]]
    places = {hit.passage.id: (hit.lexical_rank, hit.lexical_score, hit.dense_rank, hit.dense_score) for hit in before}
    assert {hit.passage.id: (hit.lexical_rank, hit.lexical_score, hit.dense_rank, hit.dense_score) for hit in after} == places


@MODES
async def test_a_smaller_k_cuts_the_same_order_and_finds_what_lay_beyond_it(reranking: Client, mode: pb.SearchMode.ValueType) -> None:
    whole = await reranking.search(QUERY, mode, k=40, rerank=True)
    for k in (1, 3, WINDOW, WINDOW + 1):
        assert await reranking.search(QUERY, mode, k=k, rerank=True) == whole[:k]
    first = await reranking.ids(QUERY, mode, k=3)
    assert not {hit.passage.id for hit in whole[:3]} <= set(first)


async def test_a_window_of_the_request_bounds_what_is_seen(reranking: Client) -> None:
    before = await reranking.search(QUERY, HYBRID, k=3, window=5)
    after = await reranking.search(QUERY, HYBRID, k=3, window=5, rerank=True)
    five = await reranking.search(QUERY, HYBRID, k=5, window=5)
    assert [hit.passage.id for hit in five[:3]] == [hit.passage.id for hit in before]
    reranked = await reranking.search(QUERY, HYBRID, k=5, window=5, rerank=True)
    assert {hit.passage.id for hit in reranked} == {hit.passage.id for hit in five}
    assert after == reranked[:3]


@MODES
async def test_filters_hold_for_reranked_passages(reranking: Client, mode: pb.SearchMode.ValueType) -> None:
    hits = await reranking.search(QUERY, mode, k=40, rerank=True, filters={"document": "d1"})
    assert {hit.passage.document for hit in hits} == {"d1"}
    assert [hit.HasField("rerank_score") for hit in hits] == [True] * WINDOW + [False] * (len(hits) - WINDOW)


async def test_equal_passages_keep_the_order_they_had(reranking: Client) -> None:
    same = Client(reranking.stub)
    await same.made(passage(f"p{n:02}", "the same words in every passage") for n in range(30))
    hits = await same.search("the same words", HYBRID, k=30, rerank=True)
    assert [hit.passage.id for hit in hits] == [f"p{n:02}" for n in range(30)]
    assert len({hit.rerank_score for hit in hits[:WINDOW]}) == 1


async def test_a_pair_beyond_the_longest_input_counts_by_its_beginning(reranking: Client) -> None:
    beginning = "the queen bee and the tide " * tiny_models.MAX_TOKENS
    long = Client(reranking.stub)
    await long.made([passage("a", beginning), passage("b", beginning + "something else at its end " * 2000), passage("c", "the queen")])
    scores = {hit.passage.id: hit.rerank_score for hit in await long.search(QUERY, LEXICAL, rerank=True)}
    assert scores["a"] == scores["b"] != scores["c"]


async def test_the_response_names_the_model_that_reordered_it(reranking: Client, model_folder: Path) -> None:
    async def reranker(**settings: bool) -> str:
        request = pb.SearchRequest(index=reranking.name, query=QUERY, settings=pb.SearchSettings(**settings))
        return (await reranking.stub.Search(request)).reranker

    assert await reranker(rerank=True) == f"{model_folder}@{fingerprint(model_folder)}"
    assert await reranker() == ""
    assert await reranker(rerank=False) == ""


async def test_a_search_that_finds_nothing_is_an_empty_result(reranking: Client) -> None:
    assert await reranking.search("xylophone", LEXICAL, rerank=True) == []


async def test_a_batch_is_reranked_as_its_queries_alone_are(reranking: Client) -> None:
    queries = [f"passage about {word} number {n}" for n in range(6) for word in ("tea", "moon", "bee")]
    settings = pb.SearchSettings(k=5, rerank=True)
    requests = [
        pb.BatchSearchRequest(id=query, search=pb.SearchRequest(index=reranking.name, query=query, settings=settings)) for query in queries
    ]
    answers = {answer.id: answer.search async for answer in reranking.stub.BatchSearch(iter(requests))}
    for query in queries:
        alone = await reranking.search(query, k=5, rerank=True)
        assert [hit.passage.id for hit in answers[query].hits] == [hit.passage.id for hit in alone]
        assert [hit.score for hit in answers[query].hits] == pytest.approx([hit.score for hit in alone], abs=1e-4)


async def test_a_full_queue_of_pairs_refuses_at_once_and_searches_without_rerank_go_on(
    store: Indexes, encoders: SentenceEncoders, model_folder: Path
) -> None:
    reranker = make(model_folder, encoders, max_queue=WINDOW)
    await reranker.prepare()
    async with serving(store, encoders, reranker) as client:
        await client.made(corpus())
        go = threading.Event()
        encoders.executor.submit(go.wait, 30)  # the device is busy
        waiting = asyncio.create_task(client.search(QUERY, LEXICAL, k=40, rerank=True))
        while not reranker._pair_count:  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(0.01)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "RERANKER_QUEUE_FULL"):
            await client.search(QUERY, LEXICAL, k=40, rerank=True)
        assert await client.search(QUERY, LEXICAL)
        go.set()
        assert len(await waiting) == 40


async def test_a_reranker_that_is_not_yet_loaded_says_so(store: Indexes, encoders: SentenceEncoders, model_folder: Path) -> None:
    async with serving(store, encoders, make(model_folder, encoders)) as client:
        await client.made(corpus()[:3])
        with refused(grpc.StatusCode.UNAVAILABLE, "RERANKER_LOADING"):
            await client.search(QUERY, rerank=True)


async def test_only_models_that_were_saved_to_give_one_score_are_loaded(encoders: SentenceEncoders, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="gives 3 scores for a pair"):
        await make(tiny_models.cross_encoder(tmp_path / "three", scores=3), encoders).prepare()
    with pytest.raises(FailedPrecondition, match="without a layer for scores"):
        await make(tiny_models.encoder(tmp_path / "encoder"), encoders).prepare()
    saved = tiny_models.cross_encoder(tmp_path / "saved")
    CrossEncoder(str(saved), device="cpu").save_pretrained(str(tmp_path / "again"))
    await make(tmp_path / "again", encoders).prepare()
