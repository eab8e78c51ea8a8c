"""Settings and the store of aliases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.errors import Aborted
from services.generator.retriever_client import credentials
from services.generator.settings import Settings
from services.generator.sqlalchemy_aliases import SqlAlchemyAliases


@pytest.mark.parametrize("text", ["a=/x,org/b=/y/z", ' {"a": "/x", "org/b": "/y/z"}'])
def test_models_are_named_by_pairs_or_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNETRIAL_MODELS", text)
    assert Settings().models == {"a": "/x", "org/b": "/y/z"}


@pytest.mark.parametrize("text", ["", "{}", "a", "=x", "a=", '{"a": 1}', "{"])
def test_models_that_name_nothing_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNETRIAL_MODELS", text)
    with pytest.raises(ValidationError):
        Settings()


def test_no_token_goes_over_a_channel_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNETRIAL_MODELS", "a=/x")
    assert credentials(Settings()) is None
    monkeypatch.setenv("TUNETRIAL_RETRIEVER_TOKEN", "secret")
    with pytest.raises(ValueError, match="in the clear"):
        credentials(Settings())
    assert "secret" not in repr(Settings())


async def test_aliases_and_their_history_outlive_the_process(tmp_path: Path) -> None:
    first = SqlAlchemyAliases(tmp_path)
    assert await first.current() == {}
    await first.set("production", "one", "")
    history = await first.set("production", "two", "one")
    await first.set("canary", "one", None)
    assert [change.target for change in history] == ["two", "one"]
    assert history[0].time >= history[1].time
    await first.close()
    second = SqlAlchemyAliases(tmp_path)
    assert {alias: change.target for alias, change in (await second.current()).items()} == {"production": "two", "canary": "one"}
    await second.close()


async def test_of_two_that_set_an_alias_at_once_one_wins(tmp_path: Path) -> None:
    stores = SqlAlchemyAliases(tmp_path), SqlAlchemyAliases(tmp_path)
    for store in stores:
        await store.current()
    results = await asyncio.gather(
        *(store.set("production", str(number), "") for number, store in enumerate(stores)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Aborted", "tuple"]
    with pytest.raises(Aborted):
        await stores[0].set("production", "x", "")
    for store in stores:
        await store.close()
