"""Rubrics as JSON files, one a rubric, written whole or not at all. Knows no engine.

`rubrics/<hash>.json` holds a rubric, `written/<request hash>` the hash of the rubric whose steps were written for a request.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from datetime import datetime
from pathlib import Path

from services.common.errors import FailedPrecondition, ResourceExhausted
from services.judge.domain import EngineName, Mode, Rubric

_HASH = re.compile(r"[0-9a-f]{64}")


class JsonRubricStore:
    """A folder of rubrics. Several processes may share it: a file is never changed once it is there."""

    def __init__(self, folder: Path) -> None:
        self._rubrics, self._written = folder / "rubrics", folder / "written"

    def read(self, rubric_hash: str) -> Rubric | None:
        """Raises FailedPrecondition RUBRIC_CHANGED when the file no longer holds what the hash says."""
        path = self._rubrics / f"{rubric_hash}.json"
        if not _HASH.fullmatch(rubric_hash) or not path.exists():
            return None
        try:
            rubric = _from_json(json.loads(path.read_text(encoding="utf-8")))
            sound = rubric.hash == rubric_hash
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise FailedPrecondition(
                "RUBRIC_CHANGED", "{path} is not the rubric that its name says: a rubric is frozen; remove the file", path=path
            )
        return rubric

    def read_written_for(self, request_hash: str) -> Rubric | None:
        """The rubric whose steps were written for this request."""
        path = self._written / request_hash
        return self.read(path.read_text(encoding="ascii").strip()) if path.exists() else None

    def write(self, rubric: Rubric, request_hash: str) -> Rubric:
        """The rubric as kept. Raises ResourceExhausted RUBRIC_NOT_WRITTEN when the disk does not take it."""
        known = self.read(rubric.hash)
        try:
            if known is None:
                text = json.dumps(rubric.content() | {"create_time": rubric.create_time.isoformat()}, indent=1, ensure_ascii=False)
                _write(self._rubrics / f"{rubric.hash}.json", text + "\n")
            _write(self._written / request_hash, rubric.hash + "\n")
        except OSError as error:
            raise ResourceExhausted(
                "RUBRIC_NOT_WRITTEN", "cannot keep the rubric under TUNETRIAL_DATA_DIR: {detail}", detail=error
            ) from error
        return known or rubric


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    partial = Path(name)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _from_json(data: dict[str, object]) -> Rubric:
    # Types are not checked one by one: whatever differs from what was written changes the hash.
    values = dict(data)
    return Rubric(
        **values  # type: ignore[arg-type]  # see above
        | {
            "steps": tuple(values["steps"]),  # type: ignore[arg-type]  # see above
            "engine": EngineName(str(values["engine"])),
            "mode": None if values["mode"] is None else Mode(str(values["mode"])),
            "create_time": datetime.fromisoformat(str(values["create_time"])),
        }
    )
