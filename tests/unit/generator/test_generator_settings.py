"""Settings and the store of aliases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.errors import Aborted
from services.generator.engine_settings import OpenAISettings
from services.generator.retriever_client import credentials
from services.generator.settings import Settings
from services.generator.sqlalchemy_models import SqlAlchemyModels


@pytest.mark.parametrize("text", ["a=/x,org/b=/y/z", ' {"a": "/x", "org/b": "/y/z"}'])
def test_models_are_named_by_pairs_or_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNETRIAL_MODELS", text)
    assert Settings().models == {"a": "/x", "org/b": "/y/z"}


@pytest.mark.parametrize("text", ["a", "=x", "a=", '{"a": 1}', "{"])
def test_models_that_name_nothing_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNETRIAL_MODELS", text)
    with pytest.raises(ValidationError):
        Settings()


_ENGINES = """{
  "llama": {"engine": "vllm", "urls": ["http://vllm-0:8000", "http://vllm-1:8000"], "source": "/models/llama"},
  "gpt4": {"engine": "openai", "model": "gpt-4o", "api_key_variable": "OPENAI_API_KEY"}
}"""


def test_engines_come_from_models_a_json_object_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    file.write_text('{"old": {"engine": "tgi", "urls": ["http://tgi"], "source": "/models/old", "adapters": ["a"]}}')
    monkeypatch.setenv("TUNETRIAL_MODELS", "small=/x")
    monkeypatch.setenv("TUNETRIAL_ENGINES", _ENGINES)
    monkeypatch.setenv("TUNETRIAL_ENGINES_FILE", str(file))
    engines = Settings().all_engines()
    assert {name: engine.engine for name, engine in engines.items()} == {
        "small": "transformers",
        "llama": "vllm",
        "gpt4": "openai",
        "old": "tgi",
    }
    with pytest.raises(ValueError, match="OPENAI_API_KEY, which is not set"):
        OpenAISettings(engine="openai", model="m", api_key_variable="OPENAI_API_KEY").api_key()
    monkeypatch.setenv("TUNETRIAL_MODELS", "llama=/x")
    with pytest.raises(ValueError, match="named twice: llama"):
        Settings().all_engines()
    file.write_text('{"old": {"engine": "tgi", "url": "http://tgi"}}')
    with pytest.raises(ValueError, match=r"engines\.json.*(?s:.)*urls"):
        Settings().all_engines()


def test_a_service_without_any_model_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNETRIAL_MODELS", raising=False)
    with pytest.raises(ValueError, match="TUNETRIAL_MODELS"):
        Settings().all_engines()


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"engine": "vllm", "urls": [], "source": "x"}}',
        '{"a": {"engine": "vllm", "urls": ["vllm:8000"], "source": "x"}}',
        '{"a": {"engine": "vllm", "urls": ["http://vllm"], "sauce": "x"}}',
        '{"a": {"engine": "ollama"}}',
        '{"a": {"engine": "openai", "model": "m", "usd_per_million_input_tokens": -1}}',
    ],
)
def test_engines_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TUNETRIAL_ENGINES", text)
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
    first = SqlAlchemyModels(tmp_path)
    await first.open()
    assert await first.current() == {}
    await first.set("production", "one", "")
    history = await first.set("production", "two", "one")
    await first.set("canary", "one", None)
    assert [change.target for change in history] == ["two", "one"]
    assert history[0].time >= history[1].time
    await first.close()
    second = SqlAlchemyModels(tmp_path)
    await second.open()
    assert {alias: change.target for alias, change in (await second.current()).items()} == {"production": "two", "canary": "one"}
    await second.close()


async def test_of_two_that_set_an_alias_at_once_one_wins(tmp_path: Path) -> None:
    stores = SqlAlchemyModels(tmp_path), SqlAlchemyModels(tmp_path)
    for store in stores:
        await store.open()
    results = await asyncio.gather(
        *(store.set("production", str(number), "") for number, store in enumerate(stores)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Aborted", "tuple"]
    with pytest.raises(Aborted):
        await stores[0].set("production", "x", "")
    for store in stores:
        await store.close()
