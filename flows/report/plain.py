"""Dataclasses as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any


def plain(value: Any) -> Any:
    """The value as JSON takes it: dataclasses and mappings as objects, sequences as arrays, what is not a finite number as null.

    Raises TypeError for anything else.
    """
    found = value.value if isinstance(value, Enum) else value
    if found is None or isinstance(found, str | bool | int):
        return found
    if isinstance(found, float):
        return float(found) if math.isfinite(found) else None
    if is_dataclass(found) and not isinstance(found, type):
        return {field.name: plain(getattr(found, field.name)) for field in fields(found)}
    if isinstance(found, Mapping):
        return {str(key): plain(entry) for key, entry in found.items()}
    if isinstance(found, list | tuple):
        return [plain(entry) for entry in found]
    raise TypeError(f"{type(value).__name__} has no form in JSON")
