"""What the cache keeps and drops, and that nothing that happens to its file reaches a caller. The model here only counts."""

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import structlog

from services.retriever.domain import Vectors
from services.retriever.embedding_cache import CachedEncoder, EmbeddingCache

WIDTH = 64


class Counting:
    """Vector of a text: made of its hash and of the encoder's fingerprint."""

    def __init__(self, fingerprint: str = "f") -> None:
        self.fingerprint, self.max_tokens = fingerprint, 256
        self.seen: list[str] = []

    async def queries(self, texts: Sequence[str]) -> Vectors:
        return await self.passages(texts)

    async def passages(self, texts: Sequence[str]) -> Vectors:
        self.seen += texts
        return Vectors(WIDTH, b"".join(vector(self.fingerprint, text) for text in texts))


def vector(fingerprint: str, text: str) -> bytes:
    rng = np.random.default_rng([*f"{fingerprint}/{text}".encode()])
    return rng.standard_normal(WIDTH, dtype=np.float32).tobytes()


def right(vectors: Vectors, texts: Sequence[str], fingerprint: str = "f") -> bool:
    return vectors == Vectors(WIDTH, b"".join(vector(fingerprint, text) for text in texts))


@asynccontextmanager
async def opened(folder: Path, max_bytes: int = 2**20) -> AsyncIterator[EmbeddingCache]:
    cache = EmbeddingCache(folder, max_bytes)
    yield cache
    await cache.close()


async def encoded(folder: Path, texts: Sequence[str], max_bytes: int = 2**20, fingerprint: str = "f") -> list[str]:
    """Texts that reach the encoder when these are encoded; their vectors are right anyway."""
    encoder = Counting(fingerprint)
    async with opened(folder, max_bytes) as cache:
        assert right(await CachedEncoder(encoder, cache).passages(texts), texts, fingerprint)
    return encoder.seen


async def test_a_text_is_encoded_once_in_a_batch_and_never_again(tmp_path: Path) -> None:
    assert await encoded(tmp_path, ["a", "b", "a", "c", "b"]) == ["a", "b", "c"]
    assert await encoded(tmp_path, ["c", "d", "a", "d", "b"]) == ["d"]
    assert await encoded(tmp_path, ["a", "b", "c", "d"]) == []


async def test_another_encoder_has_vectors_of_its_own(tmp_path: Path) -> None:
    await encoded(tmp_path, ["a", "b"], fingerprint="f")
    assert await encoded(tmp_path, ["a", "b"], fingerprint="g") == ["a", "b"]
    assert await encoded(tmp_path, ["a", "b"], fingerprint="f") == []


async def test_texts_that_differ_in_anything_are_different(tmp_path: Path) -> None:
    texts = ["a", "a ", "A", "á", "a\u0301", "a\n", "日本", ""]
    await encoded(tmp_path, texts[:4])
    assert await encoded(tmp_path, texts) == texts[4:]


async def test_queries_are_not_kept(tmp_path: Path) -> None:
    encoder = Counting()
    async with opened(tmp_path) as cache:
        cached = CachedEncoder(encoder, cache)
        assert right(await cached.queries(["q"]), ["q"])
        assert right(await cached.queries(["q"]), ["q"])
        assert right(await cached.passages(["q"]), ["q"])
    assert encoder.seen == ["q", "q", "q"]


async def test_the_oldest_make_room_and_the_file_stays_in_its_bound(tmp_path: Path) -> None:
    bound = 400_000
    for batch in range(40):
        await encoded(tmp_path, [f"{batch} {n}" for n in range(50)], bound)
        assert (tmp_path / "embeddings.sqlite").stat().st_size <= bound + 50 * 4 * WIDTH * 2
    assert await encoded(tmp_path, [f"39 {n}" for n in range(50)], bound) == []
    assert await encoded(tmp_path, [f"0 {n}" for n in range(50)], bound) == [f"0 {n}" for n in range(50)]


async def test_a_bound_that_was_lowered_frees_the_disk(tmp_path: Path) -> None:
    for batch in range(20):
        await encoded(tmp_path, [f"{batch} {n}" for n in range(100)], 10 * 2**20)
    before = (tmp_path / "embeddings.sqlite").stat().st_size
    for batch in range(10):
        await encoded(tmp_path, [f"later {batch} {n}" for n in range(100)], 200_000)
    assert before > 600_000
    assert (tmp_path / "embeddings.sqlite").stat().st_size < 300_000


async def test_a_vector_that_the_disk_has_changed_is_encoded_anew_and_mended(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(20)]
    await encoded(tmp_path, texts)
    file = tmp_path / "embeddings.sqlite"
    content = file.read_bytes()
    place = content.index(vector("f", "text 7"))
    file.write_bytes(content[: place + 9] + bytes([content[place + 9] ^ 1]) + content[place + 10 :])
    assert await encoded(tmp_path, texts) == ["text 7"]
    assert await encoded(tmp_path, texts) == []


async def test_vectors_that_changed_places_are_encoded_anew(tmp_path: Path) -> None:
    await encoded(tmp_path, ["a", "b"])
    with sqlite3.connect(tmp_path / "embeddings.sqlite") as connection:
        values = [value for (value,) in connection.execute("SELECT value FROM vectors ORDER BY id")]
        connection.executemany("UPDATE vectors SET value = ? WHERE id = ?", [(values[1], 1), (values[0], 2)])
    connection.close()
    assert await encoded(tmp_path, ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("spoil", ["text", "truncated", "zeros", "folder", "foreign"])
async def test_a_broken_file_is_told_once_and_passed_by(tmp_path: Path, spoil: str) -> None:
    file = tmp_path / "embeddings.sqlite"
    texts = [f"text {n}" for n in range(200)]
    await encoded(tmp_path, texts)
    match spoil:
        case "text":
            file.write_text("this is no database" * 1000)
        case "truncated":
            os.truncate(file, 20_000)
        case "zeros":
            file.write_bytes(file.read_bytes()[:100] + bytes(file.stat().st_size - 100))
        case "folder":
            file.unlink()
            file.mkdir()
        case "foreign":
            file.unlink()
            with sqlite3.connect(file) as connection:
                connection.execute("CREATE TABLE vectors (other TEXT)")
            connection.close()
    encoder = Counting()
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path) as cache:
            for _ in range(3):
                assert right(await CachedEncoder(encoder, cache).passages(texts), texts)
    assert encoder.seen == texts * 3
    assert [log["event"] for log in logs] == ["embedding cache cannot be used"]
    assert str(file) in logs[0]["file"]


async def test_a_folder_that_cannot_be_made_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        assert await encoded(tmp_path / "file" / "cache", ["a"]) == ["a"]


@pytest.mark.parametrize(("rest_s", "seen"), [(0, ["a", "a"]), (3600, ["a", "a", "a"])])
async def test_after_a_rest_the_cache_is_tried_again(tmp_path: Path, rest_s: float, seen: list[str]) -> None:
    file = tmp_path / "embeddings.sqlite"
    file.mkdir()
    encoder = Counting()
    cache = EmbeddingCache(tmp_path, 2**20, rest_s)
    cached = CachedEncoder(encoder, cache)
    await cached.passages(["a"])
    await cache.find("f", [])  # behind what was to be stored
    file.rmdir()
    await cached.passages(["a"])
    await cached.passages(["a"])
    await cache.close()
    assert encoder.seen == seen


async def test_a_full_disk_is_passed_by_and_what_is_there_stays_right(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(200)]
    await encoded(tmp_path, texts)
    # A child with a limit on the size of its files: a write beyond it fails as on a full disk.
    child = multiprocessing.get_context("fork").Process(target=_write_limited, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert await encoded(tmp_path, texts) == []


def _write_limited(folder: Path) -> None:
    import asyncio  # noqa: PLC0415  the child's own
    import resource  # noqa: PLC0415

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    more = [f"more {n}" for n in range(2000)]
    with structlog.testing.capture_logs() as logs:
        seen = asyncio.run(encoded(folder, more))
    assert seen == more
    assert [log["event"] for log in logs] == ["embedding cache cannot be used"]


async def test_processes_that_write_at_once_and_are_killed_leave_only_right_vectors(tmp_path: Path) -> None:
    await encoded(tmp_path, ["begin"])
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    children = [context.Process(target=_write_for_ever, args=(tmp_path, number, told)) for number in range(3)]
    for child in children:
        child.start()
    for _ in range(9):
        told.get(timeout=60)
    for child in children:
        child.kill()
        child.join(60)
    with sqlite3.connect(tmp_path / "embeddings.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    texts = [f"{number} {round_} {n}" for number in range(3) for round_ in range(3) for n in range(50)]
    assert len(await encoded(tmp_path, texts)) < len(texts)


def _write_for_ever(folder: Path, number: int, told: "multiprocessing.Queue[int]") -> None:
    import asyncio  # noqa: PLC0415  the child's own

    round_ = 0
    while True:
        asyncio.run(encoded(folder, [f"{number} {round_} {n}" for n in range(50)]))
        told.put(number)
        round_ += 1
