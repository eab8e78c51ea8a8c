"""A finished run as its folder keeps it: the outcome, the report as JSON, its records. Knows no stage and asks nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid
from pydantic import TypeAdapter, ValidationError

from flows.errors import UserError
from flows.outcome import Outcome, read

Record = TypeVar("Record")

SCHEMA = "tunetrial.report/1"
"""Of the report that this reads; its keys stand in `flows.report.export`."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that ended. `report` is its `report.json`."""

    folder: Path
    outcome: Outcome
    report: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder: `quickstart-3f2a10`."""
        return self.folder.name

    def records(self, name: str, record: type[Record]) -> tuple[Record, ...]:
        """A table of the folder. Raises UserError when it is not there or not readable."""
        file = self.folder / f"{name}.parquet"
        try:
            rows = pq.read_table(file).to_pylist()
            return TypeAdapter(tuple[record, ...]).validate_python(rows)  # type: ignore[valid-type]
        except (OSError, ArrowInvalid, ValidationError) as error:
            raise UserError(f"{file} cannot be read: {_first_line(error)}. {_AGAIN}") from None


_AGAIN = "Remove the run's folder and run its trial again: answers and judgements are kept, so that it costs nothing"


def find_run(name: str, runs: Path) -> FinishedRun:
    """The run of this name, or in this folder. Raises UserError when it is not there, not finished or not readable."""
    folder = Path(name) if Path(name).is_dir() else runs / name
    folder = folder.resolve()
    outcome = read(folder)
    if outcome is None:
        why = "is not finished: it holds no readable outcome.json" if folder.is_dir() else "is no run"
        raise UserError(f"{name!r} {why}; finished runs in {runs}: {', '.join(_finished(runs)) or 'none'}")
    file = folder / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {_first_line(error)}. {_AGAIN}") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{file} is of schema {schema!r}, this version reads {SCHEMA!r}. {_AGAIN}")
    # A run may have been copied here from elsewhere: its folder is where it is now.
    return FinishedRun(folder, replace(outcome, folder=str(folder)), report)


def _finished(runs: Path) -> list[str]:
    return [folder.name for folder in sorted(runs.iterdir()) if (folder / "outcome.json").is_file()] if runs.is_dir() else []


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
