"""Where adapters come from: folders under allowed roots, object stores by way of the cache, and providers. Knows no engine and no name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from services.common.errors import InvalidArgument, TunetrialError
from services.common.security import allowed_uri
from services.generator import verification
from services.generator.adapter_cache import AdapterCache
from services.generator.domain import Placed
from services.generator.verification import AdapterFiles

HOSTED = "openai:"
"""Uris of adapters that a provider keeps begin so."""


class AdapterSources:
    """Its methods block."""

    def __init__(self, uri_roots: str, cache: AdapterCache | None) -> None:
        """Without a cache, folders only."""
        self._roots, self._cache = uri_roots, cache

    def read(self, uri: str, in_use: Collection[Path]) -> AdapterFiles:
        """The adapter that is at `uri` now; folders `in_use` stay in the cache.

        Raises InvalidArgument URI_NOT_ALLOWED, ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_CHECKSUM_MISMATCH, Unavailable.
        """
        if uri.startswith(HOSTED):
            return hosted(uri)
        place = allowed_uri(uri, self._roots)
        if isinstance(place, str):
            place = self._cached(place).bring(place, in_use)
        return verification.read_adapter(place)

    def again(self, placed: Placed, in_use: Collection[Path]) -> AdapterFiles:
        """An adapter that was served before; from the cache where it is there, without asking the store. Raises what `read` does."""
        if placed.uri.startswith(HOSTED):
            return hosted(placed.uri)
        place = allowed_uri(placed.uri, self._roots)
        if isinstance(place, str):
            for folder in self._cached(place).kept(place):
                files = _read_or_none(folder)
                if files is not None and is_that(files, placed):
                    return files
        return self.read(placed.uri, in_use)

    def _cached(self, url: str) -> AdapterCache:
        if self._cache is None:
            raise InvalidArgument("URI_NOT_ALLOWED", "{uri}: only local paths and file: URIs are served", uri=url, field="uri")
        return self._cache


def hosted(uri: str) -> AdapterFiles:
    """An adapter whose weights a provider keeps; nothing of it is here. Raises InvalidArgument ADAPTER_UNREADABLE."""
    model = uri.removeprefix(HOSTED)
    if not model or any(letter.isspace() for letter in model):
        message = "{uri} names no model: give `{scheme}` and the provider's name of the fine-tuned model"
        raise InvalidArgument("ADAPTER_UNREADABLE", message, uri=uri, scheme=HOSTED, field="uri")
    # Its name is all by which it can be told from another one.
    return AdapterFiles(Path(), "", hashlib.sha256(model.encode()).hexdigest(), hosted_model=model)


def is_that(files: AdapterFiles, placed: Placed) -> bool:
    """Whether it is the very adapter that was served before."""
    return (files.weights_sha256, files.config_sha256) == (placed.weights_sha256, placed.config_sha256)


def _read_or_none(folder: Path) -> AdapterFiles | None:
    try:
        return verification.read_adapter(folder)
    except TunetrialError:
        return None
