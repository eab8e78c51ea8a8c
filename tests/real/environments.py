"""Environments of libraries that cannot live beside ours, each made from a file of pinned requirements."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_of(name: str) -> Path:
    """Python of the environment `.venv-<name>`, made from `requirements/<name>.txt` where it is not there or out of date."""
    folder, wanted = ROOT / f".venv-{name}", ROOT / "requirements" / f"{name}.txt"
    python, made = folder / "bin" / "python", folder / "made-from.txt"
    with alone(f"environment-{name}"):
        if not made.exists() or made.read_bytes() != wanted.read_bytes():
            uv = (sys.executable, "-m", "uv")
            subprocess.run((*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)), check=True)
            subprocess.run((*uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(wanted)), check=True)
            made.write_bytes(wanted.read_bytes())
    return python


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Tests run in several processes: one of them fetches or makes a thing, the others wait."""
    with (Path(tempfile.gettempdir()) / f"tunetrial-{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
