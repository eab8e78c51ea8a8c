"""Adapters out of an object store: a real server of the S3 protocol, a real engine. What is there is fetched once, checked, and proven."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generator_parts import until, write_manifest

from services.common.errors import FailedPrecondition, InvalidArgument, TunetrialError, Unavailable
from services.generator.adapter_cache import AdapterCache
from services.generator.catalog import Catalog
from services.generator.domain import State
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.transformers_engine import TransformersEngine
from tests.contract.common.s3_server import BUCKET, S3, s3_server

ROOT = f"s3://{BUCKET}/adapters"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


def served(s3: S3, base: Path, tmp_path: Path, most_bytes: int = 1 << 30) -> Catalog:
    roots, cache = f"{tmp_path}:{ROOT}", AdapterCache(tmp_path / "cache", s3.options, most_bytes)
    engine = TransformersEngine("tiny", str(base))
    return Catalog({"tiny": engine}, SqlAlchemyModels(tmp_path / "data"), uri_roots=roots, tolerance=0.05, queue_limit=8, cache=cache)


@pytest.fixture
async def catalog(s3: S3, base: Path, tmp_path: Path) -> Any:
    catalog = served(s3, base, tmp_path)
    await catalog.prepare()
    yield catalog
    await catalog.close()


def put(s3: S3, base: Path, folder: Path, name: str, /, **changes: Any) -> str:
    """Puts an adapter where and as the trainer does; the URL of it."""
    write_manifest(base, folder)
    files = s3.files()
    for file in folder.iterdir():
        files.put_file(str(file), f"{BUCKET}/adapters/{name}/job1/{file.name}")
    sums = {file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in folder.iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text()) | {"folder": "job1", "files": sums}
    files.pipe_file(f"{BUCKET}/adapters/{name}/manifest.json", json.dumps(manifest | changes).encode())
    return f"{ROOT}/{name}"


async def refused(catalog: Catalog, uri: str, kind: type[TunetrialError], reason: str) -> str:
    with pytest.raises(kind) as error:
        await catalog.load("bad", uri, "")
    assert error.value.reason == reason
    assert [model.name for model in catalog.models()] == ["tiny"]
    return error.value.message


def gets(s3: S3, what: str) -> int:
    return sum(line.startswith("GET ") and what in line for line in s3.door.requests)


async def test_an_adapter_is_fetched_once_proven_and_served_again_while_the_store_is_away(
    s3: S3, base: Path, tmp_path: Path, catalog: Catalog, adapter_maker: Callable[..., Path]
) -> None:
    url = put(s3, base, adapter_maker(), "good")
    model = await catalog.load("one", url, "")
    assert (model.state, model.uri) == (State.VERIFIED, url)
    assert model.proof is not None
    assert model.proof.difference_from_manifest == pytest.approx(0, abs=1e-4)
    assert gets(s3, "good/job1/adapter_model.safetensors") == 1
    assert (await catalog.load("two", url, "")).state is State.VERIFIED
    assert gets(s3, "good/job1/adapter_model.safetensors") == 1
    await catalog.close()

    s3.door.shut()
    try:
        again = served(s3, base, tmp_path)
        await again.prepare()
        await until(lambda: all(model.state in (None, State.VERIFIED) for model in again.models()))
        assert [model.name for model in again.models()] == ["tiny", "one", "two"]
        with pytest.raises(Unavailable) as away:
            await again.load("three", url, "")
        assert away.value.reason == "STORE_UNAVAILABLE"
    finally:
        s3.door.open()
    # A copy that somebody broke is fetched anew.
    (weights,) = (tmp_path / "cache").glob("*/adapter_model.safetensors")
    os.truncate(weights, 10)
    assert (await again.load("three", url, "")).state is State.VERIFIED
    assert gets(s3, "good/job1/adapter_model.safetensors") == 2
    await again.close()


async def test_what_was_tampered_with_is_refused(
    s3: S3, base: Path, tmp_path: Path, catalog: Catalog, adapter_maker: Callable[..., Path]
) -> None:
    url = put(s3, base, adapter_maker("first", seed=1), "tampered")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = f"{BUCKET}/adapters/tampered/job1/{name}"
        content = s3.files().cat_file(path)
        s3.files().pipe_file(path, content[:-1] + b" ")
        message = await refused(catalog, url, FailedPrecondition, "ADAPTER_CHECKSUM_MISMATCH")
        assert name in message
        assert url in message
        s3.files().pipe_file(path, content)
    assert not [folder for folder in (tmp_path / "cache").iterdir() if "tampered" in folder.name]
    assert (await catalog.load("good", url, "")).state is State.VERIFIED


async def test_what_is_no_adapter_says_why(s3: S3, base: Path, catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    s3.files().pipe_file(f"{BUCKET}/adapters/half/job1/adapter_model.safetensors", b"half")
    assert "there is no manifest.json" in await refused(catalog, f"{ROOT}/half", InvalidArgument, "ADAPTER_UNREADABLE")
    s3.files().pipe_file(f"{BUCKET}/adapters/broken/manifest.json", b"{")
    assert "manifest.json: " in await refused(catalog, f"{ROOT}/broken", InvalidArgument, "ADAPTER_UNREADABLE")
    url = put(s3, base, adapter_maker(), "elsewhere", files={"../../good/secret.json": {"sha256": "0"}})
    assert "names files elsewhere" in await refused(catalog, url, InvalidArgument, "ADAPTER_UNREADABLE")
    url = put(s3, base, adapter_maker(), "gone", folder="job2")
    assert "is not there" in await refused(catalog, url, InvalidArgument, "ADAPTER_UNREADABLE")
    with s3.knowing_nobody():
        message = await refused(catalog, f"{ROOT}/half", InvalidArgument, "ADAPTER_UNREADABLE")
    assert "look at the credentials" in message
    assert "hunter3" not in message


async def test_a_folder_that_was_copied_there_with_its_manifest_is_an_adapter_too(
    s3: S3, base: Path, catalog: Catalog, adapter_maker: Callable[..., Path]
) -> None:
    folder = adapter_maker()
    write_manifest(base, folder)
    for file in folder.iterdir():
        s3.files().put_file(str(file), f"{BUCKET}/adapters/copied/{file.name}")
    assert (await catalog.load("copied", f"{ROOT}/copied/", "")).state is State.VERIFIED
    s3.files().pipe_file(f"{BUCKET}/adapters/copied/adapter_config.json", b"{}")
    s3.files().pipe_file(f"{BUCKET}/adapters/copied/manifest.json", b"{}")
    with pytest.raises(InvalidArgument):
        await catalog.load("other", f"{ROOT}/copied", "")


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{BUCKET}/other/one",
        f"s3://{BUCKET}/adapters-of-others/one",
        f"{ROOT}/../other/one",
        f"{ROOT}//one",
        f"{ROOT}/one?versionId=1",
        f"{ROOT}/%2e%2e/one",
        "gs://bucket/one",
        f"filecache::{ROOT}/one",
        "http://169.254.169.254/latest",
    ],
)
async def test_urls_outside_the_roots_are_not_asked_for(s3: S3, catalog: Catalog, uri: str) -> None:
    before = len(s3.door.requests)
    await refused(catalog, uri, InvalidArgument, "URI_NOT_ALLOWED")
    assert len(s3.door.requests) == before


async def test_the_cache_makes_room_but_keeps_what_is_served(
    s3: S3, base: Path, tmp_path: Path, adapter_maker: Callable[..., Path]
) -> None:
    catalog = served(s3, base, tmp_path, most_bytes=1)
    await catalog.prepare()
    for number, name in enumerate(("kept", "unloaded", "newest")):
        url = put(s3, base, adapter_maker(name, seed=number), name)
        for folder in (tmp_path / "cache").glob("*"):
            os.utime(folder, (0, 0))
        await catalog.load(name, url, "")
        if name == "unloaded":
            await catalog.unload(name)
    assert sorted(folder.name.split("-")[0] for folder in (tmp_path / "cache").iterdir()) == ["kept", "newest"]
    await catalog.close()
