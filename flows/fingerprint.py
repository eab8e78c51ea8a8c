"""Hashes of files that go into a trial. Knows no stage.

A hash is remembered with the file's size and time of change, so that gigabytes of weights are read once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from flows.errors import UserError

_MODEL_FILES = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "*.jinja",
    "vocab*",
    "merges.txt",
)


class Fingerprints:
    """sha256 of files and folders, remembered in one JSON file."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads(memory.read_text(encoding="utf-8"))

    def file(self, path: Path) -> str:
        """sha256 of one file, hexadecimal. Raises UserError when it cannot be read."""
        try:
            state = path.stat()
            key = f"{path}:{state.st_size}:{state.st_mtime_ns}"
            if key not in self._known:
                with path.open("rb") as file:
                    self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
                self._remember()
            return self._known[key]
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None

    def folder(self, path: Path) -> str:
        """sha256 over names and contents of all files below a folder, hexadecimal; of a file, its own."""
        if not path.is_dir():
            return self.file(path)
        return self._of(path, sorted(file for file in path.rglob("*") if file.is_file()))

    def model(self, path: Path) -> str:
        """sha256 over the weights, configuration and tokenizer of a model's folder. Raises UserError when it is no such folder."""
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder; `base` is a folder with safetensors weights, or a hub name")
        files = sorted({file for pattern in _MODEL_FILES for file in path.glob(pattern)})
        if not any(file.suffix == ".safetensors" for file in files):
            raise UserError(f"{path}: holds no *.safetensors weights")
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: holds no config.json; a base is a folder as `save_pretrained` of transformers writes it")
        return self._of(path, files)

    def weights(self, path: Path) -> str:
        """sha256 of a base's weights as generator and trainer define it: over `name:sha256` lines of its *.safetensors files."""
        lines = "".join(f"{file.name}:{self.file(file)}\n" for file in sorted(path.glob("*.safetensors")))
        return hashlib.sha256(lines.encode()).hexdigest()

    def _of(self, root: Path, files: list[Path]) -> str:
        names = "".join(f"{file.relative_to(root)}:{self.file(file)}\n" for file in files)
        return hashlib.sha256(names.encode()).hexdigest()

    def _remember(self) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        partial = self._memory.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(self._known), encoding="utf-8")
        partial.replace(self._memory)
