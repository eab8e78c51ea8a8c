"""Rules of the domain, and the ingest over fake ports."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from services.common.errors import InvalidArgument, ResourceExhausted
from services.retriever.domain import (
    ContentHash,
    Index,
    IndexSettings,
    IngestReport,
    Mode,
    Part,
    Passage,
    SearchSettings,
    Vectors,
    check_passage,
)
from services.retriever.retriever import Retriever


@pytest.mark.parametrize(
    ("k", "window", "depth"), [(5, None, 50), (10, None, 50), (11, None, 55), (1000, None, 5000), (5, 7, 7), (5, 5, 5)]
)
def test_the_window_is_five_k_and_at_least_fifty_unless_given(k: int, window: int | None, depth: int) -> None:
    assert SearchSettings(k=k, window=window).depth == depth


@pytest.mark.parametrize("mode", [Mode.LEXICAL, Mode.DENSE])
def test_one_leg_alone_is_read_to_k(mode: Mode) -> None:
    assert SearchSettings(mode=mode, k=7, window=100).depth == 7


@pytest.mark.parametrize(
    ("settings", "k", "depth"),
    [
        ({"k": 5}, 50, 50),
        ({"k": 100}, 100, 500),
        ({"k": 5, "window": 7}, 7, 7),
        ({"k": 5, "window": 200}, 50, 200),
        ({"k": 5, "mode": Mode.DENSE}, 50, 50),
        ({"k": 100, "mode": Mode.LEXICAL, "window": 300}, 100, 100),
    ],
)
def test_candidates_are_so_many_without_reading_the_legs_to_another_depth(settings: dict[str, object], k: int, depth: int) -> None:
    wider = SearchSettings(**settings).candidates(50)  # type: ignore[arg-type]
    assert (wider.k, wider.depth) == (k, depth)


def test_more_candidates_than_the_legs_were_read_for_deepen_only_legs_without_a_window() -> None:
    assert (SearchSettings(k=5).candidates(200).k, SearchSettings(k=5).candidates(200).depth) == (200, 200)
    assert (SearchSettings(k=5, window=60).candidates(200).k, SearchSettings(k=5, window=60).candidates(200).depth) == (60, 60)


def test_weights_of_zero_are_refused_only_where_they_rank() -> None:
    assert SearchSettings(mode=Mode.LEXICAL, lexical_weight=0, dense_weight=0).depth == 5
    with pytest.raises(InvalidArgument, match="nothing could be ranked"):
        SearchSettings(lexical_weight=0, dense_weight=0)


@pytest.mark.parametrize(
    ("passage", "reason"),
    [
        (Passage("a" * 512, "x" * 100_000), None),
        (Passage("é" * 257, "x"), "PASSAGE_ID_INVALID"),
        (Passage("\x7f", "x"), "PASSAGE_ID_INVALID"),
        (Passage("a", "\u2003\u00a0"), "PASSAGE_EMPTY"),
        (Passage("a", "日" * 100_001), "PASSAGE_TOO_LONG"),
        (Passage("a", "x", metadata=tuple((str(n), "") for n in range(32))), None),
        (Passage("a", "x", metadata=(("", "v"),)), "METADATA_INVALID"),
    ],
)
def test_a_passage_is_refused_for_the_first_rule_it_breaks(passage: Passage, reason: str | None) -> None:
    failure = check_passage(passage)
    assert (failure.reason if failure else None) == reason


def test_the_content_hash_knows_every_field() -> None:
    def digest(settings: IndexSettings, passage: Passage) -> str:
        content = ContentHash(settings)
        content.add(passage)
        return content.hexdigest()

    base = Passage("a", "t")
    others = [
        Passage("b", "t"),
        Passage("a", "u"),
        Passage("a", "t", document="d"),
        Passage("a", "t", title="d"),
        Passage("a", "t", heading="d"),
        Passage("a", "t", metadata=(("k", "v"),)),
    ]
    hashes = {digest(IndexSettings("e"), each) for each in (base, *others)}
    hashes |= {
        digest(settings, base) for settings in (IndexSettings("f"), IndexSettings("e", bm25_k1=2.0), IndexSettings("e", language="German"))
    }
    assert len(hashes) == 10


@dataclass
class Recorder:
    """Both ports: remembers what happened, in order; storing waits until told."""

    events: list[str] = field(default_factory=list)
    stored: dict[str, Passage] = field(default_factory=dict)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    full_at: int = 10**9
    encoded: asyncio.Event | None = None

    async def get(self, name: str) -> "Index | Recorder":
        return self if name == "e" else Index(name, IndexSettings("e"), datetime.now(UTC))

    async def present(self, name: str, ids: Sequence[str]) -> frozenset[str]:
        return frozenset(self.stored.keys() & set(ids))

    async def passages(self, texts: Sequence[str]) -> Vectors:
        self.events.append(f"encode {' '.join(texts)}")
        if self.encoded is not None:
            await self.encoded.wait()
        return Vectors(1, b"\0\0\0\0" * len(texts))

    async def add(self, name: str, passages: Sequence[Passage], vectors: Vectors) -> IngestReport:
        assert len(passages) == len(vectors)
        await self.go.wait()
        if len(self.stored) >= self.full_at:
            raise ResourceExhausted("DISK_FULL", "full")
        self.events.append(f"store {' '.join(passage.id for passage in passages)}")
        new = {passage.id: passage for passage in passages if passage.id not in self.stored}
        self.stored |= new
        return IngestReport(len(new), len(passages) - len(new), ())


def retriever(recorder: Recorder) -> Retriever:
    return Retriever(recorder, recorder, "e", ingest_batch=2)  # type: ignore[arg-type]


async def parts(*ids: str) -> AsyncIterator[Part]:
    for each in ids:
        yield Part("index", (Passage(each, f"text-{each}"),))


async def turns() -> None:
    for _ in range(100):  # of the loop: more than all that can happen before somebody waits
        await asyncio.sleep(0)


async def test_the_next_batch_is_encoded_while_one_is_stored_and_no_more_is_read() -> None:
    recorder = Recorder()
    ingest = asyncio.create_task(retriever(recorder).ingest(parts(*"abcdefghi")))
    await turns()
    assert recorder.events == ["encode text-a text-b", "encode text-c text-d"]
    recorder.go.set()
    report = await ingest
    assert (report.added_count, report.skipped_count) == (9, 0)
    assert [event for event in recorder.events if event[0] == "s"] == ["store a b", "store c d", "store e f", "store g h", "store i"]


async def test_the_encoder_has_the_next_batch_before_it_is_done_with_one() -> None:
    recorder = Recorder(encoded=asyncio.Event())
    recorder.go.set()
    ingest = asyncio.create_task(retriever(recorder).ingest(parts(*"abcdefghi")))
    await turns()
    assert recorder.events == ["encode text-a text-b", "encode text-c text-d"]
    recorder.encoded.set()
    assert (await ingest).added_count == 9


async def test_what_is_stored_already_is_not_encoded_again() -> None:
    recorder = Recorder()
    recorder.go.set()
    recorder.stored["a"] = Passage("a", "before")
    report = await retriever(recorder).ingest(parts("a", "b", "b", "a"))
    assert (report.added_count, report.skipped_count) == (1, 3)
    assert recorder.events[0] == "encode text-b"
    assert recorder.stored["a"].text == "before"


async def test_a_store_that_fills_up_ends_the_ingest_with_its_error() -> None:
    recorder = Recorder(full_at=2)
    recorder.go.set()
    with pytest.raises(ResourceExhausted, match="full"):
        await retriever(recorder).ingest(parts(*"abcdefgh"))
    assert list(recorder.stored) == ["a", "b"]


async def test_an_ingest_stops_when_nearly_everything_is_refused() -> None:
    async def blank() -> AsyncIterator[Part]:
        for _ in range(20):
            yield Part("index", (Passage("a", " "),) * 1000)

    with pytest.raises(InvalidArgument, match="PASSAGE_EMPTY"):
        await retriever(Recorder()).ingest(blank())
