"""Versions of the libraries that a result may depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = (
    "tunetrial",
    "torch",
    "transformers",
    "peft",
    "trl",
    "lancedb",
    "sentence-transformers",
    "numpy",
    "scipy",
    "statsmodels",
    "prefect",
)


def versions() -> dict[str, str]:
    """Library -> version, of those that are installed beside the flows."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
