"""What every index must do, seen from the wire. Runs on each store of conftest.STORES; it knows none of them."""

import asyncio
import hashlib
import json
import math
from itertools import pairwise

import grpc
import pytest
from retriever_client import Client, passage, refused
from tunetrial.common.v1 import common_pb2
from tunetrial.retriever.v1 import retriever_pb2 as pb

LEXICAL, DENSE, HYBRID = pb.SEARCH_MODE_LEXICAL, pb.SEARCH_MODE_DENSE, pb.SEARCH_MODE_HYBRID
MODES = pytest.mark.parametrize("mode", [LEXICAL, DENSE, HYBRID], ids=["lexical", "dense", "hybrid"])
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

TEXTS = {
    "bee#0": "Honey bees dance to tell their sisters where flowers are.",
    "bee#1": "A queen bee lays up to two thousand eggs a day.",
    "moon#0": "The Moon raises tides in the oceans of the Earth.",
    "moon#1": "Astronauts walked on the lunar surface in 1969.",
    "tea#0": "Green tea is made from leaves that were not oxidised.",
    "tea#1": "Boiling water makes tea bitter.",
}


def corpus() -> list[common_pb2.Passage]:
    return [passage(id, text, id.split("#")[0], part=id.split("#")[1]) for id, text in TEXTS.items()]  # noqa: A001


async def test_an_index_is_born_open_with_its_settings_resolved(client: Client) -> None:
    index = await client.create()
    assert (index.name, index.state, index.passage_count, index.vector_dimensions) == (client.name, pb.INDEX_STATE_OPEN, 0, 0)
    assert index.settings.encoder == "sentence-transformers/all-MiniLM-L6-v2"
    assert (index.settings.bm25_k1, index.settings.bm25_b, index.settings.language) == (1.2, 0.75, "")
    assert (index.HasField("create_time"), index.HasField("seal_time"), index.content_hash) == (True, False, "")


async def test_creating_again_with_the_same_settings_returns_the_index_as_it_is(client: Client) -> None:
    first = await client.create()
    assert await client.create(bm25_k1=1.2, encoder="sentence-transformers/all-MiniLM-L6-v2") == first
    with refused(grpc.StatusCode.ALREADY_EXISTS, "INDEX_SETTINGS_DIFFER"):
        await client.create(language="German")


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "../a", "a b", "x" * 129, ".hidden", "ü"])
async def test_a_name_outside_the_alphabet_is_refused_at_creation_and_unknown_elsewhere(client: Client, name: str) -> None:
    client.name = name
    with refused(INVALID, "INDEX_NAME_INVALID", "name"):
        await client.create()
    with refused(NOT_FOUND, "INDEX_NOT_FOUND"):
        await client.get()
    with refused(NOT_FOUND, "INDEX_NOT_FOUND"):
        await client.delete()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"bm25_k1": -1.0}, "settings.bm25_k1"),
        ({"bm25_k1": math.nan}, "settings.bm25_k1"),
        ({"bm25_b": 1.5}, "settings.bm25_b"),
        ({"language": "Klingon"}, "settings.language"),
    ],
)
async def test_index_settings_out_of_range_are_refused_by_name(client: Client, settings: dict[str, object], field: str) -> None:
    with refused(INVALID, "INDEX_SETTINGS_INVALID", field):
        await client.create(**settings)


async def test_an_encoder_that_cannot_be_had_is_refused_when_the_index_is_created(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(PRECONDITION, "ENCODER_UNAVAILABLE"):
        await client.create(encoder="nobody/no-such-encoder")
    with refused(INVALID, "URI_NOT_ALLOWED"):
        await client.create(encoder="/etc")
    with refused(INVALID, "ENCODER_INVALID"):
        await client.create(encoder="owner/name; rm -rf /")


async def test_unknown_indexes_are_not_found_by_every_rpc(client: Client) -> None:
    for call in (client.get, client.seal, client.delete, lambda: client.search("tea"), lambda: client.ingest(corpus())):
        with refused(NOT_FOUND, "INDEX_NOT_FOUND"):
            await call()


async def test_an_index_lives_from_open_over_sealed_to_deleted(client: Client) -> None:
    await client.create()
    with refused(PRECONDITION, "INDEX_EMPTY"):
        await client.seal()
    assert (await client.ingest(corpus())).added_count == 6
    with refused(PRECONDITION, "INDEX_NOT_SEALED"):
        await client.search("tea")
    open_ = await client.get()
    assert (open_.state, open_.passage_count, open_.vector_dimensions) == (pb.INDEX_STATE_OPEN, 6, 384)
    index = await client.seal()
    assert (index.state, index.passage_count, index.HasField("seal_time")) == (pb.INDEX_STATE_SEALED, 6, True)
    assert await client.seal() == index == await client.get()
    with refused(PRECONDITION, "INDEX_SEALED"):
        await client.ingest([passage("late", "too late")])
    await client.delete()
    with refused(NOT_FOUND, "INDEX_NOT_FOUND"):
        await client.search("tea")
    assert (await client.create()).passage_count == 0


async def test_passages_that_are_there_are_skipped_and_unusable_ones_are_named(client: Client) -> None:
    await client.create()
    await client.ingest(corpus()[:2])
    bad = [
        passage("", "no id"),
        passage("x" * 513, "id too long"),
        passage("a\nb", "control character"),
        passage("blank", " \n\t"),
        passage("long", "x" * 100_001),
        passage("keys", "too many", **{f"k{n}": "v" for n in range(33)}),
        common_pb2.Passage(id="own", text="own", metadata={"document": "x"}),
    ]
    done = await client.ingest([*corpus(), *bad, passage("tea#1", "said twice, the first counts")])
    assert (done.added_count, done.skipped_count) == (4, 3)
    assert [failure.reason for failure in done.failures] == [
        "PASSAGE_ID_INVALID",
        "PASSAGE_ID_INVALID",
        "PASSAGE_ID_INVALID",
        "PASSAGE_EMPTY",
        "PASSAGE_TOO_LONG",
        "METADATA_INVALID",
        "METADATA_INVALID",
    ]
    assert [failure.id for failure in done.failures] == [each.id for each in bad]
    await client.seal()
    assert (await client.search("boiling water", LEXICAL, k=1))[0].passage.text == TEXTS["tea#1"]


async def test_an_ingest_names_one_index_and_sends_parts_of_bounded_size(client: Client) -> None:
    await client.create()

    async def send(*parts: pb.IngestPassagesRequest) -> None:
        await client.stub.IngestPassages(iter(parts))

    with refused(INVALID, "INDEX_NAME_MISSING", "index"):
        await send()
    with refused(INVALID, "INDEX_NAME_MISSING", "index"):
        await send(pb.IngestPassagesRequest(passages=corpus()))
    with refused(INVALID, "INDEX_NAME_CHANGED", "index"):
        await send(pb.IngestPassagesRequest(index=client.name), pb.IngestPassagesRequest(index="other"))
    with refused(INVALID, "TOO_MANY_PASSAGES", "passages"):
        await send(pb.IngestPassagesRequest(index=client.name, passages=[passage(str(n), "x") for n in range(1001)]))
    await send(pb.IngestPassagesRequest(index=client.name, passages=corpus()[:3]), pb.IngestPassagesRequest(passages=corpus()[3:]))
    assert (await client.get()).passage_count == 6


async def test_two_writers_leave_every_passage_once(client: Client) -> None:
    await client.create()
    rows = [passage(f"p{n:03}", f"passage number {n} about subject {n % 7}") for n in range(200)]
    reports = await asyncio.gather(client.ingest(rows, 10), client.ingest(reversed(rows), 10), client.ingest(rows[50:150], 10))
    assert sum(report.added_count for report in reports) == 200
    assert sum(report.skipped_count for report in reports) == 300
    assert (await client.seal()).passage_count == 200
    assert sorted(await client.ids("passage number", LEXICAL, k=1000)) == [row.id for row in rows]


async def test_the_content_hash_is_that_of_settings_and_passages_in_id_order_however_they_came(client: Client) -> None:
    index = await client.made(corpus())
    other = Client(client.stub)
    assert (await other.made(reversed(corpus()))).content_hash == index.content_hash
    changed = Client(client.stub)
    assert (await changed.made([*corpus()[:-1], passage("tea#1", "Other words.")])).content_hash != index.content_hash
    settings = {"encoder": "sentence-transformers/all-MiniLM-L6-v2", "bm25_k1": 1.2, "bm25_b": 0.75, "language": ""}
    lines: list[dict[str, object]] = [settings]
    for id, text in sorted(TEXTS.items()):  # noqa: A001
        document, part = id.split("#")
        lines.append({"id": id, "text": text, "document": document, "title": "", "heading": "", "metadata": [["part", part]]})
    written = "".join(json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines)
    assert index.content_hash == hashlib.sha256(written.encode()).hexdigest()


async def test_each_leg_finds_what_it_is_for_and_hybrid_finds_both(client: Client) -> None:
    await client.made(corpus())
    lexical = await client.search("1969 eggs", LEXICAL)
    assert {hit.passage.id for hit in lexical} == {"moon#1", "bee#1"}
    assert all(hit.lexical_rank == hit.rank and hit.lexical_score == hit.score for hit in lexical)
    assert not any(hit.HasField("dense_rank") or hit.HasField("dense_score") for hit in lexical)
    dense = await client.search("insects that live in hives", DENSE, k=2)
    assert {hit.passage.id for hit in dense} == {"bee#0", "bee#1"}
    assert all(hit.dense_rank == hit.rank and -1 <= hit.dense_score == hit.score <= 1 for hit in dense)
    assert not any(hit.HasField("lexical_rank") for hit in dense)
    assert "moon#1" in await client.ids("oxidised leaves or spaceflight", HYBRID, k=3)


async def test_a_passage_asked_for_verbatim_has_cosine_one_and_comes_back_whole(client: Client) -> None:
    whole = common_pb2.Passage(id="w", text=TEXTS["tea#0"], document="d", title="Tea", heading="Kinds > Green", metadata={"lang": "en"})
    await client.made([whole, *corpus()[:4]])
    (hit,) = await client.search(whole.text, DENSE, k=1)
    assert hit.passage == whole
    assert hit.score == pytest.approx(1, abs=1e-4)


async def test_hybrid_scores_are_reciprocal_ranks_with_weights(client: Client) -> None:
    await client.made(corpus())
    for settings in ({}, {"fusion_k": 1, "lexical_weight": 3.0, "dense_weight": 0.5}):
        hits = await client.search("the tides of the Earth", k=6, **settings)
        constant, lexical, dense = settings.get("fusion_k", 60), settings.get("lexical_weight", 1), settings.get("dense_weight", 1)
        for hit in hits:
            parts = (lexical / (constant + hit.lexical_rank) if hit.HasField("lexical_rank") else 0) + dense / (constant + hit.dense_rank)
            assert hit.score == pytest.approx(parts)
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6]
        assert all(a.score >= b.score for a, b in pairwise(hits))


async def test_bm25_is_bm25(client: Client) -> None:
    # Robertson/Zaragoza with Lucene's idf; a constant factor (k1 + 1) is free, so scores are compared as ratios.
    texts = {"a": "fox", "b": "fox fox dog cat", "c": "dog cat bird", "d": "bird bird bird bird bird bird"}
    await client.made([passage(id, text) for id, text in texts.items()])  # noqa: A001
    mean = sum(len(text.split()) for text in texts.values()) / 4

    def score(text: str) -> float:
        words, found = text.split(), 0.0
        for term in ("fox", "dog"):
            count, df = words.count(term), sum(term in other.split() for other in texts.values())
            idf = math.log(1 + (4 - df + 0.5) / (df + 0.5))
            found += idf * count / (count + 1.2 * (0.25 + 0.75 * len(words) / mean)) if count else 0
        return found

    hits = await client.search("fox dog", LEXICAL)
    expected = sorted(((score(text), id) for id, text in texts.items() if score(text)), reverse=True)  # noqa: A001
    assert [hit.passage.id for hit in hits] == [id for _, id in expected]  # noqa: A001
    assert [hit.score / hits[0].score for hit in hits] == pytest.approx([each / expected[0][0] for each, _ in expected], rel=0.02)


@MODES
async def test_equal_passages_come_in_the_order_of_their_ids_however_they_were_ingested(
    client: Client, mode: pb.SearchMode.ValueType
) -> None:
    rows = [passage(f"p{n:03}", "the same words in every passage") for n in range(130)]
    other = Client(client.stub)
    await client.made(rows)
    await other.made(rows[::-1])
    first = await client.ids("the same words", mode, k=7)
    assert first == [f"p{n:03}" for n in range(7)]
    assert await other.ids("the same words", mode, k=7) == first


@MODES
async def test_two_ingests_of_the_same_passages_give_the_same_order_and_scores(client: Client, mode: pb.SearchMode.ValueType) -> None:
    words = ["bee", "moon", "tea", "water", "egg", "leaf", "tide", "queen", "flower", "ocean"]
    rows = [passage(f"p{n:03}", " ".join(words[(n * step) % 10] for step in (1, 3, 7, 9)) + f" {n % 5}") for n in range(150)]
    other = Client(client.stub)
    await client.made(rows)
    await other.made(sorted(rows, key=lambda row: row.id[::-1]))
    for query in ("queen water 3", "tide of tea", "leaf"):
        mine, theirs = await client.search(query, mode, k=40), await other.search(query, mode, k=40)
        assert [hit.passage.id for hit in mine] == [hit.passage.id for hit in theirs]
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=2e-5)


@MODES
async def test_k_beyond_the_index_returns_what_there_is(client: Client, mode: pb.SearchMode.ValueType) -> None:
    await client.made(corpus())
    ids = await client.ids("bees moon tea flowers", mode, k=1000)
    assert len(ids) == len(set(ids)) <= 6
    assert mode == LEXICAL or len(ids) == 6


@MODES
async def test_filters_hold_in_both_legs_before_passages_are_taken(client: Client, mode: pb.SearchMode.ValueType) -> None:
    # The one that passes the filter ranks far below the window of either leg.
    rows = [passage(f"p{n:03}", "tea tea tea", "many", kind="x") for n in range(100)]
    await client.made([*rows, passage("only", "tea and a lot of other words about the weather in spring", "one", kind="y", lang="en")])
    assert await client.ids("tea", mode, k=5, window=5, filters={"kind": "y"}) == ["only"]
    assert await client.ids("tea", mode, k=5, window=5, filters={"document": "one"}) == ["only"]
    assert await client.ids("tea", mode, k=5, window=5, filters={"document": "one", "kind": "y", "lang": "en"}) == ["only"]
    assert await client.ids("tea", mode, filters={"document": "one", "kind": "x"}) == []
    assert await client.ids("tea", mode, filters={"nokey": "x"}) == []


HOSTILE = ["it's", 'say "hi"', "' OR '1'='1", "x' OR 1=1 --", "\\", "\\'", "%", "_", "*", "a\x1fb", '","', "]", "nul\x00", "é", "日本", ""]


async def test_filter_values_are_data_whatever_characters_they_hold(client: Client) -> None:
    rows = [passage(f"p{n:02}", "tea", value, key=value) for n, value in enumerate(HOSTILE)]
    await client.made([*rows, *(passage(f"q{n:02}", "tea", **{value or "-": "1"}) for n, value in enumerate(HOSTILE))])
    for n, value in enumerate(HOSTILE):
        assert await client.ids("tea", k=100, filters={"key": value}) == [f"p{n:02}"], value
        expected = {f"p{n:02}"} if value else {f"p{n:02}", *(f"q{m:02}" for m in range(len(HOSTILE)))}
        assert set(await client.ids("tea", k=100, filters={"document": value})) == expected, value
        assert await client.ids("tea", k=100, filters={value or "-": "1"}) == [f"q{n:02}"], value
    assert {hit.passage.metadata["key"] for hit in await client.search("tea", LEXICAL, k=100) if hit.passage.id[0] == "p"} == set(HOSTILE)


@MODES
@pytest.mark.parametrize(
    "query",
    [
        '"',
        "tea AND (",
        "+tea -water",
        "tea~2 tea^3",
        'text:"tea"',
        "/tea.*/",
        "???",
        "\\",
        "' OR 1=1 --",
        "{}[]!:",
        "\x00",
        "e\u0301",
        "🐝🐝",
        "的",
    ],
)
async def test_no_character_of_a_query_is_an_operator(client: Client, mode: pb.SearchMode.ValueType, query: str) -> None:
    client.name = "hostile-queries"
    index = await client.create()
    if index.state == pb.INDEX_STATE_OPEN:
        await client.ingest(corpus())
        await client.seal()
    ids = await client.ids(query, mode)
    if mode == LEXICAL:
        assert set(ids) == ({"tea#0", "tea#1"} if "tea" in query else set())  # no passage has another word of these queries


async def test_words_of_any_script_are_found(client: Client) -> None:
    rows = {
        "zh": "北京是中国的首都",
        "ja": "東京タワーは高い",
        "el": "Στην Αθήνα ζουν πολλοί",
        "fr": "Le café coûte cher",
        "ar": "القاهرة مدينة كبيرة",
    }
    await client.made([passage(id, text) for id, text in rows.items()])  # noqa: A001
    for query, id in (("首都", "zh"), ("東京", "ja"), ("αθήνα", "el"), ("CAFÉ", "fr"), ("القاهرة", "ar")):  # noqa: A001
        # A store may cut Chinese and Japanese into single characters: then others follow, but not before.
        assert (await client.ids(query, LEXICAL))[:1] == [id], query


async def test_accents_count_and_case_does_not(client: Client) -> None:
    await client.made([passage("with", "Le café coûte cher"), passage("without", "Le cafe coute cher")])
    assert await client.ids("CAFÉ", LEXICAL) == ["with"]
    assert await client.ids("Cafe", LEXICAL) == ["without"]


async def test_a_language_stems_words_and_none_does_not(client: Client) -> None:
    rows = [passage("a", "The runners were running"), passage("b", "Nobody sat there")]
    await client.made(rows)
    english = Client(client.stub)
    assert await client.ids("run", LEXICAL) == []
    assert (await english.made(rows, language="English")).settings.language == "English"
    assert await english.ids("run", LEXICAL) == ["a"]
    assert await client.ids("the", LEXICAL) == ["a"]
    assert await english.ids("the", LEXICAL) == []


async def test_passages_of_one_token_and_of_ten_thousand_are_both_found(client: Client) -> None:
    await client.made([passage("short", "x"), passage("long", "needle " + "hay " * 10_000 + "thread"), *corpus()])
    assert await client.ids("x", LEXICAL) == ["short"]
    assert await client.ids("thread", LEXICAL) == ["long"]
    assert "long" in await client.ids("hay needle", HYBRID)


@pytest.mark.parametrize("query", ["", "   ", "\n\t"])
async def test_an_empty_query_is_refused(client: Client, query: str) -> None:
    with refused(INVALID, "QUERY_EMPTY", "query"):
        await client.search(query)


async def test_a_query_has_at_most_ten_thousand_characters(client: Client) -> None:
    await client.made(corpus())
    assert await client.ids(("tea " * 2500)[:10_000], k=1)
    with refused(INVALID, "QUERY_TOO_LONG", "query"):
        await client.search("x" * 10_001)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"k": 0}, "settings.k"),
        ({"k": 1001}, "settings.k"),
        ({"k": 10, "window": 9}, "settings.window"),
        ({"window": 10_001}, "settings.window"),
        ({"fusion_k": 0}, "settings.fusion_k"),
        ({"lexical_weight": -0.1}, "settings.lexical_weight"),
        ({"dense_weight": math.inf}, "settings.dense_weight"),
        ({"lexical_weight": 0.0, "dense_weight": 0.0}, "settings.lexical_weight"),
        ({"mode": 99}, "settings.mode"),
    ],
)
async def test_search_settings_out_of_range_are_refused_by_name(client: Client, settings: dict[str, object], field: str) -> None:
    with refused(INVALID, "SEARCH_SETTINGS_INVALID", field):
        await client.search("tea", **{"mode": HYBRID, **settings})


async def test_reranking_without_a_reranker_is_refused(client: Client) -> None:
    await client.made(corpus())
    with refused(PRECONDITION, "RERANKER_NOT_CONFIGURED"):
        await client.search("tea", rerank=True)
    assert await client.ids("tea", rerank=False)


async def test_indexes_are_listed_by_name_in_pages(client: Client) -> None:
    prefix = client.name
    names = [f"{prefix}-{n}" for n in range(5)]
    for name in reversed(names):
        await Client(client.stub, name).create()
    found: list[str] = []
    token = ""
    while True:
        page = await client.stub.ListIndexes(pb.ListIndexesRequest(page_size=2, page_token=token))
        assert len(page.indexes) <= 2
        found += [index.name for index in page.indexes]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(found)
    assert [name for name in found if name.startswith(prefix)] == names
    for size in (0, 1001):
        with refused(INVALID, "PAGE_SIZE_INVALID", "page_size"):
            await client.stub.ListIndexes(pb.ListIndexesRequest(page_size=size))
    with refused(INVALID, "PAGE_TOKEN_INVALID", "page_token"):
        await client.stub.ListIndexes(pb.ListIndexesRequest(page_token="../etc"))


async def test_a_batch_answers_each_query_once_and_an_error_only_where_it_belongs(client: Client) -> None:
    await client.made(corpus())

    def ask(id: str, query: str, index: str = "") -> pb.BatchSearchRequest:  # noqa: A002
        return pb.BatchSearchRequest(id=id, search=pb.SearchRequest(index=index or client.name, query=query))

    requests = [ask(f"q{n}", f"tea number {n}") for n in range(40)]
    requests += [ask("empty", " "), ask("nowhere", "tea", "no-such-index"), ask("q0", "again")]
    responses = [response async for response in client.stub.BatchSearch(iter(requests))]
    assert sorted(response.id for response in responses) == sorted(request.id for request in requests)
    failures = {(response.id, response.failure.reason) for response in responses if response.WhichOneof("result") == "failure"}
    assert failures == {("empty", "QUERY_EMPTY"), ("nowhere", "INDEX_NOT_FOUND"), ("q0", "QUERY_ID_REPEATED")}
    answered = {response.id: response.search for response in responses if response.WhichOneof("result") == "search"}
    for n in (0, 39):
        assert [hit.passage.id for hit in answered[f"q{n}"].hits] == await client.ids(f"tea number {n}")


async def test_a_cancelled_batch_leaves_the_service_working(client: Client) -> None:
    await client.made(corpus())
    call = client.stub.BatchSearch()
    for n in range(20):
        await call.write(pb.BatchSearchRequest(id=str(n), search=pb.SearchRequest(index=client.name, query=f"tea {n}")))
    await call.read()
    call.cancel()
    assert await client.ids("boiling tea", k=1) == ["tea#1"]


async def test_an_ingest_that_breaks_off_can_be_sent_again(client: Client) -> None:
    await client.create()
    rows = [passage(f"p{n:03}", f"passage number {n} of a long ingest") for n in range(300)]
    call = client.stub.IngestPassages()
    for start in range(0, 200, 50):
        await call.write(pb.IngestPassagesRequest(index=client.name, passages=rows[start : start + 50]))
    while not (await client.get()).passage_count:  # noqa: ASYNC110  the service is asked, nothing tells
        await asyncio.sleep(0.05)
    call.cancel()
    again = await client.ingest(rows)
    assert again.added_count + again.skipped_count == 300
    assert again.skipped_count >= 64
    assert (await client.seal()).passage_count == 300
    assert len(await client.ids("passage number", LEXICAL, k=1000)) == 300
