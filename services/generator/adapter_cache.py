"""Adapters of object stores as folders of this machine, each fetched once and checked against its manifest. Knows no engine and no name.

A folder is named by its URL and by the hash of the manifest that was there, so that a restart finds it, also when the store is away.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import structlog
from fsspec import AbstractFileSystem

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.object_store import opened, reaching, read_or_none
from services.generator.model_files import file_sha256

_log = structlog.get_logger()

_MANIFEST = "manifest.json"
_HALF = ".half"
_TAKEN = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".md"})
"""Endings of files that are fetched: never pickles, never code."""
_FOLDER = re.compile(r"[A-Za-z0-9_-]{1,128}")
_GRACE_S = 600.0
"""A folder that was asked for so recently may be about to be loaded."""


class AdapterCache:
    """Safe for use by several threads."""

    def __init__(self, folder: Path, options: Mapping[str, Any], most_bytes: int) -> None:
        """`options` are what the stores' libraries are told; `most_bytes` is what folders that nothing serves may take with the others."""
        self._folder, self._options, self._most_bytes = folder, options, most_bytes
        self._fetching = threading.Lock()

    def bring(self, url: str, in_use: Collection[Path]) -> Path:
        """The folder of the adapter that is at `url` now; others go where there is no room, but none `in_use`.

        Raises InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_CHECKSUM_MISMATCH, Unavailable STORE_UNAVAILABLE.
        """
        files, root = self._open(url)
        try:
            with reaching(url):
                content = read_or_none(files, f"{root}/{_MANIFEST}")
                if content is None:
                    raise unreadable(url, "there is no manifest.json: what has none is no adapter, or not yet")
                target = self._target(url, content)
                with self._fetching:
                    if not self._is_whole(target):
                        self._fetch(files, root, url, content, target)
        except FailedPrecondition as error:
            if error.reason != "STORE_REFUSED":
                raise
            raise unreadable(url, error.message) from error
        except FileNotFoundError as error:
            raise unreadable(url, f"{error} is not there") from error
        target.touch()
        self._make_room({target, *in_use})
        return target

    def kept(self, url: str) -> list[Path]:
        """Folders of adapters that were at `url` when it was asked for, newest first; the store is not asked."""
        found = [folder for folder in self._folder.glob(f"*-{_digest(url.encode())}-*") if self._is_whole(folder)]
        return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)

    def _open(self, url: str) -> tuple[AbstractFileSystem, str]:
        try:
            return opened(url, self._options)
        except FailedPrecondition as error:
            raise unreadable(url, error.message) from error

    def _target(self, url: str, content: bytes) -> Path:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", url.rstrip("/").rpartition("/")[2])[:100].lstrip(".")
        return self._folder / f"{name}-{_digest(url.encode())}-{_digest(content)}"

    def _fetch(self, files: AbstractFileSystem, root: str, url: str, content: bytes, target: Path) -> None:
        manifest = _parsed(url, content)
        half = self._folder / _HALF
        # As a process that was killed left it.
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        try:
            for name, (place, sha256) in _contents(files, root, url, manifest).items():
                path = half / name
                path.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(place, str(path))
                if sha256 is not None and (found := file_sha256(path)) != sha256:
                    message = "{file} in {uri} has sha256 {found}, its manifest says {expected}: bring the adapter again"
                    raise FailedPrecondition("ADAPTER_CHECKSUM_MISMATCH", message, file=name, uri=url, found=found, expected=sha256)
            (half / _MANIFEST).write_bytes(content)
            shutil.rmtree(target, ignore_errors=True)
            half.rename(target)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        _log.info("adapter fetched", uri=url, folder=str(target))

    def _is_whole(self, folder: Path) -> bool:
        """Whether its files are as its manifest says."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
            listed = manifest.get("files", {})
            return all(file_sha256(folder / name) == listed[name]["sha256"] for name in listed if _is_taken(name))
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            return False

    def _make_room(self, in_use: Collection[Path]) -> None:
        kept = [(folder.stat().st_mtime, folder) for folder in self._folder.iterdir() if folder.is_dir()]
        sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for _, folder in kept}
        for used, folder in sorted(kept):
            if sum(sizes.values()) <= self._most_bytes:
                return
            if folder not in in_use and time.time() - used > _GRACE_S:
                shutil.rmtree(folder, ignore_errors=True)
                sizes.pop(folder)
                _log.info("adapter removed from the cache", folder=str(folder))


def unreadable(url: str, why: str) -> InvalidArgument:
    """InvalidArgument ADAPTER_UNREADABLE."""
    return InvalidArgument("ADAPTER_UNREADABLE", "the adapter at {uri} cannot be read: {why}", uri=url, why=why, field="uri")


def _contents(files: AbstractFileSystem, root: str, url: str, manifest: Mapping[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Where each file of an adapter is, and its sha256, as its manifest lists them.

    Else, of a folder that was copied there, what is in it.
    """
    if "files" not in manifest:
        there = [entry["name"] for entry in files.ls(root, detail=True) if entry["type"] == "file"]
        return {name: (place, None) for place in there if _is_taken(name := place.rpartition("/")[2]) and name != _MANIFEST}
    try:
        folder = manifest["folder"]
        listed: dict[str, tuple[str, str | None]] = {
            name: (f"{root}/{folder}/{name}", str(entry["sha256"])) for name, entry in manifest["files"].items() if _is_taken(name)
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(url, f"manifest.json: {type(error).__name__}: {error}") from error
    if not _FOLDER.fullmatch(folder) or any(".." in PurePosixPath(name).parts or name.startswith("/") for name in listed):
        raise unreadable(url, "manifest.json names files elsewhere")
    return listed


def _is_taken(name: str) -> bool:
    return PurePosixPath(name).suffix in _TAKEN and name != _MANIFEST


def _parsed(url: str, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise unreadable(url, f"manifest.json: {error}") from error
    if not isinstance(manifest, dict):
        raise unreadable(url, "manifest.json is no object")
    return manifest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
