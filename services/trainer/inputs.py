"""Bases and data sets of a request: where they lie, whether they can be read, and their hashes. Knows no training and no wire."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from services.common.errors import InvalidArgument
from services.common.security import allowed_path
from services.trainer import formats
from services.trainer.domain import Inputs
from services.trainer.hosted_data import chat_rows
from services.trainer.hosted_settings import not_configured
from services.trainer.spec import TrainingSpec

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TEXT_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Patterns of a base's files other than weights that decide a training's result."""
HUB_PATTERNS = ["*.safetensors", *TEXT_PATTERNS]
"""What is fetched of a base from the hub: never pickles, never code."""


def weights_sha256(folder: Path) -> str:
    """sha256 over the lines `name:sha256` of the folder's *.safetensors files, by name. Raises OSError."""
    return _sha256_of(folder.glob("*.safetensors"))


def text_sha256(folder: Path) -> str:
    """The same of configuration, tokenizer and chat template. Raises OSError."""
    return _sha256_of(path for pattern in TEXT_PATTERNS for path in folder.glob(pattern))


def _sha256_of(paths: Iterable[Path]) -> str:
    ordered = sorted(set(paths), key=lambda path: path.name)
    return hashlib.sha256("".join(f"{path.name}:{file_sha256(path)}\n" for path in ordered).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_READERS: Mapping[str, Callable[[Path, str], Iterable[object]]] = {"dpo": formats.preferences, "hosted": chat_rows}


class FileInputs:
    """Inputs from allowed folders, bases also by name or from the hub. Hashes of bases are kept while their files stay as they are."""

    def __init__(self, uri_roots: str, models: Mapping[str, str], hub_cache: Path | None = None, provider: str = "") -> None:
        """`provider` is the address of the one that trains hosted jobs; empty for none."""
        self._uri_roots, self._models, self._hub_cache, self._provider = uri_roots, models, hub_cache, provider
        self._hashes: dict[tuple[tuple[str, int, int], ...], tuple[str, str]] = {}

    async def read(self, spec: TrainingSpec) -> Inputs:
        """Checks and hashes.

        Raises InvalidArgument BASE_UNREADABLE, DATASET_UNREADABLE, URI_NOT_ALLOWED, FailedPrecondition HOSTED_NOT_CONFIGURED.
        """
        return await asyncio.to_thread(self._read, spec)

    def _read(self, spec: TrainingSpec) -> Inputs:
        if spec.hosted and not self._provider:
            raise not_configured()
        read = _READERS.get(spec.method.kind, formats.conversations)
        dataset_path, dataset_sha256 = self._data(spec.dataset_uri, "spec.dataset_uri", read)
        evaluation = self._data(spec.evaluation_uri, "spec.evaluation_uri", read) if spec.evaluation_uri else (None, None)
        if spec.hosted:
            return Inputs(None, None, None, None, None, dataset_path, dataset_sha256, evaluation[0], evaluation[1], self._provider)
        path, hub_name, revision = self._base(spec.base)
        weights, text = self._base_hashes(path) if path is not None else (None, None)
        return Inputs(str(path) if path else None, hub_name, revision, weights, text, dataset_path, dataset_sha256, *evaluation)

    def _data(self, uri: str, field: str, read: Callable[[Path, str], Iterable[object]]) -> tuple[str, str]:
        path = self._allowed(uri, field)
        # Every row is looked at before anything is queued, so that broken ones are known at once and not after hours.
        for _ in read(path, field):
            pass
        return str(path), file_sha256(path)

    def _allowed(self, uri: str, field: str) -> Path:
        try:
            return allowed_path(uri, self._uri_roots)
        except InvalidArgument as error:
            raise InvalidArgument(error.reason, "{message}", **error.metadata | {"message": error.message, "field": field}) from error

    def _base(self, base: str) -> tuple[Path | None, str | None, str | None]:
        """The folder of a base, None if it must be fetched, its name on the hub and its commit there."""
        place = self._models.get(base, base)
        if Path(place).is_dir() or not _HUB_NAME.fullmatch(place):
            # A folder that the settings name was allowed by whoever set them.
            folder = Path(place).resolve() if base in self._models else self._allowed(place, "spec.base")
            return _checked_base(base, folder), None, None
        try:
            # A copy that is here is used as it is: the same name means the same base for all trials on this machine.
            folder = Path(snapshot_download(place, local_files_only=True, cache_dir=self._hub_cache, allow_patterns=HUB_PATTERNS))
            return _checked_base(base, folder), place, folder.name
        except LocalEntryNotFoundError:
            pass
        except HFValidationError as error:
            raise _unreadable(base, str(error)) from error
        try:
            revision = HfApi().model_info(place, timeout=20).sha
        except OfflineModeIsEnabled as error:
            raise _unreadable(base, "it is not in the local cache and HF_HUB_OFFLINE is set: fetch it first, or give a folder") from error
        except (HfHubHTTPError, OSError) as error:
            why = f"it is no folder and no name in TUNETRIAL_MODELS, and the hub does not give it: {str(error).splitlines()[0]}"
            raise _unreadable(base, why) from error
        return None, place, revision

    def _base_hashes(self, folder: Path) -> tuple[str, str]:
        files = sorted(path for pattern in HUB_PATTERNS for path in folder.glob(pattern))
        key = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        if key not in self._hashes:
            self._hashes[key] = weights_sha256(folder), text_sha256(folder)
        return self._hashes[key]


def _checked_base(base: str, folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise _unreadable(base, "there is no config.json in that folder: give the folder of a transformers model")
    if not any(folder.glob("*.safetensors")):
        raise _unreadable(base, "there are no *.safetensors in that folder: save the model as safetensors")
    return folder


def _unreadable(base: str, why: str) -> InvalidArgument:
    return InvalidArgument("BASE_UNREADABLE", "base {base}: {why}", base=base, why=why, field="spec.base")
