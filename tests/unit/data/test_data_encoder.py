"""The tokenizer of a retrieval encoder, wherever the encoder is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.errors
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from flows.data import encoder as module
from flows.data.encoder import EncoderTokens, find_encoder, load_encoder_tokens
from flows.errors import UserError


def save(folder: Path, **files: object) -> Path:
    """A folder with a tokenizer of words, which adds two special tokens, and JSON files by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def tokens(folder: Path) -> EncoderTokens:
    return load_encoder_tokens(find_encoder(str(folder), is_folder=True))


@pytest.mark.parametrize("name", ["", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_encoder_that_ships_is_found_without_a_network(name: str) -> None:
    found = load_encoder_tokens(find_encoder(name, is_folder=False))
    assert found.max_tokens == 254
    (spans,) = found.token_spans(["Gr\u00f6\u00dfe, tea."])
    assert [("Gr\u00f6\u00dfe, tea."[start:end]) for start, end in spans] == ["Gr", "\u00f6", "\u00dfe", ",", "tea", "."]


def test_where_its_wheel_is_not_installed_the_same_is_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    folder = save(tmp_path, modules=[{"path": ""}], sentence_bert_config={"max_seq_length": 10})

    def not_installed(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(module, "files", not_installed)
    hub(monkeypatch, lambda name, file: asked.append(name) or str(folder / file))  # type: ignore[func-returns-value]  # None, so the path
    assert load_encoder_tokens(find_encoder("", is_folder=False)).max_tokens == 8
    assert set(asked) == {"sentence-transformers/all-MiniLM-L6-v2"}


def test_looking_for_it_loads_no_model() -> None:
    code = "import sys; from flows.data.encoder import *; load_encoder_tokens(find_encoder('', False)); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "transformers", "sentence_transformers"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("files", "longest"),
    [
        ({"sentence_bert_config": {"max_seq_length": 10}, "tokenizer_config": {"model_max_length": 20}}, 8),
        ({"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": 20}}, 18),
        ({"sentence_bert_config": {"processor_kwargs": {"model_max_length": 12}}, "tokenizer_config": {"model_max_length": 20}}, 10),
        ({"tokenizer_config": {"model_max_length": 20}, "config": {"max_position_embeddings": 16}}, 14),
        ({"tokenizer_config": {"model_max_length": 1e30}, "config": {"max_position_embeddings": 16}}, 14),
        ({"tokenizer_config": {"model_max_length": 1e30}, "config": {"max_position_embeddings": -1}}, None),
        ({}, None),
    ],
)
def test_the_longest_text_is_what_its_files_say_less_the_special_tokens(
    tmp_path: Path, files: dict[str, object], longest: int | None
) -> None:
    found = tokens(save(tmp_path, **files))
    assert found.max_tokens == longest
    assert found.cut(["w " * 8, "w " * 9, "w " * 99]) == (0 if longest is None else sum(count > longest for count in (8, 9, 99)))


def test_a_first_module_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    save(tmp_path / "0_Transformer", sentence_bert_config={"max_seq_length": 10})
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]))
    assert tokens(tmp_path).max_tokens == 8


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "none", "retrieval.encoder: .*none: no such folder"),
        (lambda folder: folder, r"has no tokenizer\.json.*set retrieval\.chunk\.count: words"),
        (lambda folder: (folder / "modules.json").write_text("{") and folder, r"modules\.json of .* cannot be read"),
    ],
)
def test_a_folder_without_what_is_needed_is_the_users_mistake(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_encoder(str(make(tmp_path)), is_folder=True)


def hub(monkeypatch: pytest.MonkeyPatch, download: Callable[[str, str], str], cached: object = None) -> None:
    monkeypatch.setattr(module, "hf_hub_download", download)
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda name, file: cached)


def test_of_a_name_on_the_hub_only_small_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, sentence_bert_config={"max_seq_length": 10})
    asked: list[str] = []

    def download(name: str, file: str) -> str:
        asked.append(file)
        if not (folder / file).is_file():
            raise huggingface_hub.errors.RemoteEntryNotFoundError("404", response=_Response())  # type: ignore[arg-type]  # only its fields count
        return str(folder / file)

    hub(monkeypatch, download)
    assert load_encoder_tokens(find_encoder("owner/model", is_folder=False)).max_tokens == 8
    assert asked == ["modules.json", "tokenizer.json", "sentence_bert_config.json"]


class _Response:
    headers: dict[str, str] = {}  # noqa: RUF012  as the library's
    request = None
    status_code = 404


def test_a_file_that_is_known_not_to_be_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, lambda name, file: pytest.fail(f"asked for {file}"), huggingface_hub._CACHED_NO_EXIST)
    with pytest.raises(UserError, match=r"owner/model has no tokenizer\.json"):
        find_encoder("owner/model", is_folder=False)


@pytest.mark.parametrize("name", ["owner/model", "no//name"])
def test_a_tokenizer_that_cannot_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"retrieval\.chunk\.count: modules\.json of .* cannot be had.*connect once.*count: words"):
        find_encoder(name, is_folder=False)
