"""What every page shares: templates with their filters, colours, and a script that the page's own policy lets run. Knows no content."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from flows.report import formats

_FILES = files("flows.report")
_FILTERS = (
    "number",
    "signed",
    "interval",
    "percent",
    "whole",
    "plural",
    "duration",
    "money",
    "probability",
    "significant",
    "level",
    "model",
    "effect_text",
)


def environment() -> jinja2.Environment:
    """The templates of this package."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("flows.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update({name: getattr(formats, name) for name in _FILTERS})
    found.filters["words"] = lambda verdict: str(verdict).replace("_", "-").lower()
    return found


def assets(*scripts: str) -> dict[str, Any]:
    """Style and scripts of a page, and the hash by which its policy knows them."""
    script = "\n".join((_FILES / name).read_text(encoding="utf-8") for name in ("frame.js", *scripts))
    return {
        # All are files of this package.
        "style": Markup((_FILES / "style.css").read_text(encoding="utf-8")),  # noqa: S704
        "script": Markup(script),  # noqa: S704
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
