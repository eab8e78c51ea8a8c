"""The files of a base model: where they are, and which weights they hold. Knows no model library."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download

_TEXTS = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]


def model_folder(source: str, *, weights: bool) -> Path:
    """The folder of a model: `source` itself, or what the hub has under that name. Raises OSError, ValueError.

    Weights come as safetensors only, and code never.
    """
    path = Path(source)
    if path.is_dir():
        return path
    return Path(snapshot_download(source, allow_patterns=[*_TEXTS, "*.safetensors"] if weights else _TEXTS))


def base_sha256(folder: Path) -> str:
    """Hash of a base model's weights: sha256 over lines `<file name>:<sha256 of the file>` of its *.safetensors files in name order.

    Empty for a folder without weights.
    """
    lines = [f"{path.name}:{file_sha256(path)}\n" for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def file_sha256(path: Path) -> str:
    """Hash of a file, read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
