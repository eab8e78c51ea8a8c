"""Files of a model: where those of the hub lie on this disk, and the fingerprint of a folder. Knows no model.

Only safetensors weights are fetched and counted. A folder with other weights alone is refused, because the library would read them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_COUNTED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".bpe", ".spm", ".tiktoken")
"""Weights, configurations and tokenizers."""
_OTHER_RUNTIMES = ("onnx", "openvino")


def from_hub(name: str, owner: str) -> Path:
    """The folder of a model of the hub, fetched when it is not there; `owner` is whose it is when the name does not say.

    Raises OSError or ValueError when it cannot be had.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  slow to import: only who names a model of the hub pays
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    disable_progress_bars()
    full = name if "/" in name else f"{owner}/{name}"
    wanted = [f"*{suffix}" for suffix in _COUNTED]
    return Path(snapshot_download(full, allow_patterns=wanted, ignore_patterns=[f"{runtime}/*" for runtime in _OTHER_RUNTIMES]))


def fingerprint(folder: Path) -> str:
    """sha256 over names and contents of all files that a model is loaded from. Raises ValueError for weights that are no safetensors."""
    for path in folder.rglob("pytorch_model*.bin"):
        if not any(path.parent.glob("*.safetensors")):
            raise ValueError(f"{path.relative_to(folder)} is not a safetensors file: convert it")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix in _COUNTED and not hidden and name.parts[0] not in _OTHER_RUNTIMES and path.is_file():
            with path.open("rb") as file:
                digest.update(f"{name.as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
