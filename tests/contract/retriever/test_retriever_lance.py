"""What only the embedded index does: its folder, its limits, and what it says when the folder is not as it left it."""

import asyncio
import json
import os
import resource
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from services.retriever.domain import Index, IndexSettings, Mode, Passage, Query, SearchSettings, Vectors
from services.retriever.lance_index import LanceIndexes

SETTINGS = IndexSettings("an encoder")


def vectors(count: int, dimensions: int = 4) -> Vectors:
    numbers = np.random.default_rng(count).normal(size=(count, dimensions)).astype(np.float32)
    return Vectors(dimensions, (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).tobytes())


def passages(start: int, end: int) -> list[Passage]:
    return [Passage(f"p{n:04}", f"text number {n}", metadata=(("n", str(n)),)) for n in range(start, end)]


async def filled(indexes: LanceIndexes, name: str = "a", count: int = 10) -> None:
    await indexes.create(name, SETTINGS)
    await indexes.add(name, passages(0, count), vectors(count))


async def found(indexes: LanceIndexes, text: str, name: str = "a") -> list[str]:
    hits = await indexes.search(name, Query(text, None, SearchSettings(mode=Mode.LEXICAL, k=1000)))
    return [hit.passage.id for hit in hits]


@pytest.fixture
async def indexes(tmp_path: Path) -> AsyncIterator[LanceIndexes]:
    opened = LanceIndexes(tmp_path, max_passages=100)
    yield opened
    await opened.close()


async def reopened(indexes: LanceIndexes) -> LanceIndexes:
    await indexes.close()
    return LanceIndexes(indexes._folder, max_passages=100)


async def test_what_was_added_outlives_the_process_open_or_sealed(indexes: LanceIndexes) -> None:
    await filled(indexes)
    before = await indexes.get("a")
    again = await reopened(indexes)
    assert await again.get("a") == before
    assert await again.present("a", ["p0003", "nothing"]) == {"p0003"}
    assert (await again.add("a", passages(5, 15), vectors(10))).added_count == 5
    sealed = await again.seal("a")
    last = await reopened(again)
    assert await last.get("a") == sealed
    assert sorted(await found(last, "number")) == [f"p{n:04}" for n in range(15)]
    await last.close()


async def test_a_second_process_on_the_folder_is_refused(indexes: LanceIndexes, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="another retriever uses"):
        LanceIndexes(tmp_path, max_passages=1)


@pytest.mark.parametrize("settings", [IndexSettings("e", bm25_k1=2.0), IndexSettings("e", bm25_b=0.5)])
async def test_bm25_parameters_that_lance_has_not_are_refused_not_ignored(indexes: LanceIndexes, settings: IndexSettings) -> None:
    with pytest.raises(InvalidArgument, match="only: leave them unset"):
        await indexes.create("a", settings)
    assert await indexes.names() == []


async def test_an_index_takes_no_more_passages_than_it_can_search(indexes: LanceIndexes) -> None:
    await filled(indexes, count=95)
    with pytest.raises(ResourceExhausted, match="TUNETRIAL_MAX_PASSAGES"):
        await indexes.add("a", passages(95, 101), vectors(6))
    assert (await indexes.add("a", passages(90, 100), vectors(10))).added_count == 5


async def test_vectors_of_another_encoder_are_refused(indexes: LanceIndexes) -> None:
    await filled(indexes)
    with pytest.raises(FailedPrecondition, match="4 dimensions"):
        await indexes.add("a", passages(10, 11), vectors(1, 8))
    await indexes.seal("a")
    with pytest.raises(FailedPrecondition, match="now makes 8"):
        await indexes.search("a", Query("text", vectors(1, 8), SearchSettings()))


async def test_ties_beyond_the_window_are_decided_by_id(indexes: LanceIndexes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.retriever.lance_index._SEAL_ROWS", 8)  # many files, which are read side by side
    await indexes.create("a", SETTINGS)
    # The first three are a little farther than the rest, by less than what counts as a difference.
    angles = np.array([0.0] * 87 + [0.001] * 3)
    near = Vectors(2, np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32).tobytes())
    await indexes.add("a", [Passage(f"p{n:04}", "same words") for n in reversed(range(90))], near)
    await indexes.seal("a")
    for mode in Mode:
        hits = await indexes.search("a", Query("words", near.take([0]), SearchSettings(mode, k=3, window=3)))
        assert [hit.passage.id for hit in hits] == ["p0000", "p0001", "p0002"], mode


async def test_a_cancelled_write_is_whole_and_known(indexes: LanceIndexes) -> None:
    await indexes.create("a", SETTINGS)
    task = asyncio.create_task(indexes.add("a", passages(0, 50), vectors(50)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await indexes.add("a", passages(0, 50), vectors(50))).added_count == 0
    assert (await indexes.get("a")).passage_count == 50


async def test_a_deleted_index_is_gone_for_those_who_wait_for_it(indexes: LanceIndexes) -> None:
    await filled(indexes)
    sealing = asyncio.create_task(indexes.seal("a"))
    while not indexes._lock("a").locked():  # noqa: ASYNC110  it is taken in the next turns of the loop
        await asyncio.sleep(0)
    results = await asyncio.gather(indexes.delete("a"), indexes.add("a", passages(0, 1), vectors(1)), return_exceptions=True)
    assert isinstance(await sealing, Index)
    assert results[0] is None
    assert isinstance(results[1], NotFound)
    assert await indexes.names() == []


def leave_debris(folder: Path) -> None:
    """Killed between the manifest of a seal and the removal of the unsorted table, in a seal, in a create, in a delete."""
    (folder / "kept").rename(folder / "a" / "passages.lance")
    (folder / "b" / "sealed.lance" / "data").mkdir(parents=True)
    (folder / "b" / "sealed.lance" / "data" / "half.lance").write_bytes(b"half")
    (folder / ".new-1").mkdir()
    (folder / "b").joinpath("manifest.partial").write_text("{")
    shutil.copytree(folder / "b", folder / ".old-1")


async def test_what_a_killed_process_left_is_cleared_or_finished(indexes: LanceIndexes, tmp_path: Path) -> None:
    await filled(indexes)
    await filled(indexes, "b")
    shutil.copytree(tmp_path / "a" / "passages.lance", tmp_path / "kept")
    await indexes.seal("a")
    await indexes.close()
    leave_debris(tmp_path)
    again = LanceIndexes(tmp_path, max_passages=100)
    await again.create("c", SETTINGS)
    (tmp_path / "c" / "passages.lance" / "_versions").mkdir(parents=True)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a", "b", "c"]  # noqa: PTH208  quick, and this test is asynchronous
    assert (await again.get("a")).seal_time is not None
    assert not (tmp_path / "a" / "passages.lance").exists()
    assert len(await found(again, "number")) == 10
    assert (await again.seal("b")).content_hash == (await again.get("a")).content_hash
    assert (await again.get("c")).passage_count == 0
    assert (await again.add("c", passages(0, 3), vectors(3))).added_count == 3
    await again.close()


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def half_a_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def another_format(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(json.loads((folder / "manifest.json").read_text()) | {"format": 99}))


def an_unknown_field(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(json.loads((folder / "manifest.json").read_text()) | {"colour": "red"}))


def no_table(folder: Path) -> None:
    shutil.rmtree(folder / "sealed.lance")


def no_rows(folder: Path) -> None:
    shutil.rmtree(folder / "sealed.lance" / "_versions")


def a_copy(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace('"name": "a"', '"name": "z"'))


@pytest.mark.parametrize("damage", [no_manifest, half_a_manifest, another_format, an_unknown_field, no_table, no_rows, a_copy])
async def test_a_damaged_index_says_so_and_can_be_deleted(indexes: LanceIndexes, tmp_path: Path, damage: object) -> None:
    await filled(indexes)
    await indexes.seal("a")
    await indexes.close()
    damage(tmp_path / "a")  # type: ignore[operator]
    again = LanceIndexes(tmp_path, max_passages=100)
    for call in (again.get("a"), again.add("a", passages(0, 1), vectors(1)), again.seal("a"), again.create("a", SETTINGS)):
        with pytest.raises(FailedPrecondition, match=r"index a cannot be read: .+; delete it and ingest it again"):
            await call
    await again.delete("a")
    await filled(again)
    await again.close()


async def test_data_that_vanish_under_an_open_index_are_reported(indexes: LanceIndexes, tmp_path: Path) -> None:
    await filled(indexes)
    await indexes.seal("a")
    await indexes.close()
    shutil.rmtree(tmp_path / "a" / "sealed.lance" / "data")
    again = LanceIndexes(tmp_path, max_passages=100)
    with pytest.raises(FailedPrecondition, match="delete it and ingest it again"):
        await found(again, "number")
    await again.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A full disk, as a process without privileges can have one: writes beyond `size` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_said_and_leaves_the_index_as_it_was(indexes: LanceIndexes, tmp_path: Path) -> None:
    await filled(indexes)
    big = [Passage(f"q{n}", os.urandom(5000).hex()) for n in range(20)]
    with files_of_at_most(10_000):
        with pytest.raises(ResourceExhausted, match="disk of the index store is full") as caught:
            await indexes.add("a", big, vectors(20))
        assert caught.value.reason == "DISK_FULL"
        assert (await indexes.get("a")).passage_count == 10
    assert (await indexes.add("a", big, vectors(20))).added_count == 20
    with files_of_at_most(10_000), pytest.raises(ResourceExhausted, match="make room and repeat"):
        await indexes.seal("a")
    assert not (tmp_path / "a" / "sealed.lance").exists()
    with files_of_at_most(10), pytest.raises(ResourceExhausted, match="index b"):
        await indexes.create("b", SETTINGS)
    assert await indexes.names() == ["a"]
    assert (await indexes.seal("a")).passage_count == 30
    assert len(await found(indexes, "number")) == 10


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be used"):
        LanceIndexes(tmp_path / "file" / "data", max_passages=1)
