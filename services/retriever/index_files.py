"""The folder of an embedded index: its manifest, and failures of the disk in words. Knows no table."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from services.common.errors import FailedPrecondition, ResourceExhausted, TunetrialError, Unavailable
from services.retriever.domain import Index, IndexSettings, not_found

_FORMAT = 1
# The store may not grow: the disk, a quota or the file size limit of the process is reached.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE)


def write_manifest(folder: Path, index: Index) -> None:
    """Replaces the manifest whole: whenever the process ends, the old one or the new one is there."""
    values = asdict(index) | {"format": _FORMAT, "create_time": index.create_time.isoformat()}
    values["seal_time"] = index.seal_time.isoformat() if index.seal_time else None
    partial = folder / "manifest.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / "manifest.json")
    sync(folder)


def read_manifest(folder: Path) -> Index:
    """The index that the folder holds. Raises NotFound; ValueError or OSError for a manifest that cannot be read."""
    if not folder.exists():
        raise not_found(folder.name)
    try:
        values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if values.pop("format") != _FORMAT:
            raise ValueError("it was written in another format")
        values["settings"] = IndexSettings(**values["settings"])
        values["create_time"] = datetime.fromisoformat(values["create_time"])
        values["seal_time"] = datetime.fromisoformat(values["seal_time"]) if values["seal_time"] else None
        index = Index(**values)
    except (KeyError, TypeError, AttributeError, TunetrialError) as error:
        raise ValueError(f"its manifest is broken ({type(error).__name__}: {error})") from error
    if index.name != folder.name:
        raise ValueError(f"it is a copy of index {index.name}")
    return index


def sync(folder: Path) -> None:
    """Makes names in a folder outlive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(name: str, *, writing: bool) -> Iterator[None]:
    """Failures of disk and library about index `name` as ResourceExhausted DISK_FULL, Unavailable INDEX_STORE_UNAVAILABLE or,
    when reading, FailedPrecondition INDEX_UNREADABLE. The library gives errors of the system as text only.
    """
    try:
        yield
    except TunetrialError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or _mentions(error, _FULL):
            message = "the disk of the index store is full (index {name}): make room and repeat; what was stored before is still there"
            raise ResourceExhausted("DISK_FULL", message, name=name, why=why) from error
        if writing or number in _DENIED or _mentions(error, _DENIED):
            message = "the index store cannot be used (index {name}): {why}"
            raise Unavailable("INDEX_STORE_UNAVAILABLE", message, name=name, why=why) from error
        message = "index {name} cannot be read: {why}; delete it and ingest it again"
        raise FailedPrecondition("INDEX_UNREADABLE", message, name=name, why=why) from error


def _mentions(error: Exception, numbers: tuple[int, ...]) -> bool:
    return any(os.strerror(number) in str(error) for number in numbers)
