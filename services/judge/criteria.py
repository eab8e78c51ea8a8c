"""The criteria that ship, read from `criteria/<name>.v<version>.toml`; the highest version of a name is the one in use. Knows no prompt."""

from __future__ import annotations

import re
import tomllib
from importlib import resources

from services.judge.domain import Criterion

_FILE = re.compile(r"(?P<name>[a-z_]+)\.v(?P<version>\d+)\.toml")


def shipped() -> dict[str, Criterion]:
    """Criteria by name."""
    newest: dict[str, tuple[int, Criterion]] = {}
    for file in resources.files("services.judge").joinpath("criteria").iterdir():
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        version = int(match["version"])
        if version > newest.get(match["name"], (0, None))[0]:
            newest[match["name"]] = version, Criterion(data["name"], data["description"].strip(), data["needs_references"])
    return {name: criterion for name, (_, criterion) in newest.items()}
