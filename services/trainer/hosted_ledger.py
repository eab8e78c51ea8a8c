"""What was sent to a provider, written down before and after each step, so that a trainer that is killed finds it again. Knows no provider.

A file a record, put in place whole and synchronised with the disk: what `write` has returned from is there after kill -9.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """How far a job is with its provider."""

    job_id: str
    provider_job: str = ""
    """The provider's job; empty while none is known."""
    sent: float = 0.0
    """When one was last asked for (seconds since 1970) without an answer yet; 0 otherwise."""
    training_file: str = ""
    """The provider's file that was named in the request; empty without one."""
    cancelled: bool = False
    """It is to be cancelled at the provider, whatever became of it."""


class Ledger:
    """Records under one folder, which belongs to one service."""

    def __init__(self, folder: Path) -> None:
        self._jobs, self._files = folder / "jobs", folder / "files"
        for each in (self._jobs, self._files):
            each.mkdir(parents=True, exist_ok=True)

    def job(self, job_id: str) -> Record:
        """The record of a job; an empty one for a new job."""
        found = _read(self._jobs / f"{job_id}.json")
        return Record(job_id) if found is None else Record(**found)

    def write_job(self, record: Record) -> None:
        """Puts a record in place of the one before. Raises OSError."""
        _write(self._jobs / f"{record.job_id}.json", asdict(record))

    def forget_job(self, job_id: str) -> None:
        """Removes a record that nobody needs any more."""
        (self._jobs / f"{job_id}.json").unlink(missing_ok=True)

    def jobs(self) -> Iterator[Record]:
        """All records."""
        for path in sorted(self._jobs.glob("*.json")):
            yield self.job(path.stem)

    def file(self, provider: str, name: str) -> str:
        """The id of a file that a provider has; empty where none is known."""
        found = _read(self._file(provider, name))
        return "" if found is None else str(found["id"])

    def write_file(self, provider: str, name: str, id_: str) -> None:
        """Remembers a file. Raises OSError."""
        _write(self._file(provider, name), {"provider": provider, "name": name, "id": id_})

    def scratch(self, job_id: str) -> Path:
        """A place for what a job sends; whatever lies there may be written over."""
        return self._files / f"{job_id}.jsonl"

    def clear(self) -> None:
        """Removes what an attempt that was killed left at such places."""
        for path in self._files.glob("*.jsonl"):
            path.unlink(missing_ok=True)

    def _file(self, provider: str, name: str) -> Path:
        return self._files / f"{hashlib.sha256(f'{provider} {name}'.encode()).hexdigest()}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _write(path: Path, value: dict[str, Any]) -> None:
    half = path.with_suffix(".half")
    with half.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    half.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
