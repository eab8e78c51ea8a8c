"""Adapters where an engine elsewhere sees them. Knows folders, no engine."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

from services.common.errors import Unavailable
from services.generator.adapter_config import ADAPTER_FILES
from services.generator.model_files import file_sha256


class AdapterShare:
    """A folder that the engine shares, or none where it sees the same paths."""

    def __init__(self, folder: Path | None, on_engine: str) -> None:
        """`on_engine` is the folder as the engine sees it, "" where it is the same path."""
        self._folder, self._on_engine = folder, on_engine

    def bring(self, adapter: Path) -> tuple[str, str]:
        """Path of an adapter as the engine sees it, and the hash of its files; copied once for each content.

        Raises Unavailable ADAPTER_NOT_SHARED.
        """
        try:
            digest = hashlib.sha256("".join(file_sha256(adapter / name) for name in ADAPTER_FILES).encode()).hexdigest()[:16]
        except OSError as error:
            message = "the adapter in {uri} is not there any more: {why}"
            raise Unavailable("ADAPTER_NOT_SHARED", message, uri=adapter, why=error) from error
        if self._folder is None:
            return str(adapter), digest
        target = self._folder / f"{adapter.name}-{digest}"
        if not target.exists():
            half = self._folder / f".{target.name}-{secrets.token_hex(4)}"
            try:
                shutil.copytree(adapter, half)
                half.rename(target)
            except OSError as error:
                shutil.rmtree(half, ignore_errors=True)
                if not target.exists():  # nobody else was quicker
                    message = "the adapter cannot be brought to {folder}: {why}"
                    raise Unavailable("ADAPTER_NOT_SHARED", message, folder=self._folder, why=error) from error
        return (f"{self._on_engine.rstrip('/')}/{target.name}" if self._on_engine else str(target)), digest
