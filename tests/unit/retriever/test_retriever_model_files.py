"""The fingerprint of a model's folder, and where a model of the hub lies."""

from collections.abc import Callable
from pathlib import Path

import pytest

from services.retriever.model_files import fingerprint, from_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path / "model")


def filled(folder: Path) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def rename(folder: Path) -> None:
    (folder / "1_Pooling").rename(folder / "2_Pooling")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weightz"),
        lambda folder: (folder / "vocab.txt").write_text("b\na\n"),
        lambda folder: (folder / "1_Pooling" / "config.json").write_text('{"pooling": "cls"}'),
        lambda folder: (folder / "config_sentence_transformers.json").write_text("{}"),
        lambda folder: (folder / "config.json").unlink(),
        rename,
    ],
    ids=["weights", "vocabulary", "pooling", "added", "removed", "renamed"],
)
def test_every_file_that_a_model_is_loaded_from_changes_the_fingerprint(folder: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(folder)
    change(folder)
    assert fingerprint(folder) != before


def test_a_copy_has_the_same_fingerprint_whatever_lies_beside_the_model(folder: Path, tmp_path: Path) -> None:
    copy = filled(tmp_path / "copy")
    (copy / "README.md").write_text("read me")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "download.json").write_text("{}")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "config.json").write_text("{}")
    assert fingerprint(copy) == fingerprint(folder)


def test_weights_that_are_no_safetensors_are_refused_by_name(folder: Path) -> None:
    (folder / "1_Pooling" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"1_Pooling/pytorch_model.bin is not a safetensors file"):
        fingerprint(folder)


def test_a_model_of_the_hub_is_the_snapshot_that_is_here_when_there_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    snapshot = filled(kept / "snapshots" / ("a" * 40))
    assert from_hub("owner/name", "nobody") == snapshot
    assert from_hub("name", "owner") == snapshot
    with pytest.raises(OSError, match=r"cannot find|offline|outgoing traffic"):
        from_hub("owner/other", "nobody")
