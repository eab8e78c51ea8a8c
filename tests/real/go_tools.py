"""Go programs for tests: grpcurl, fetched once, and the Go example, built with stubs that are made from the contract as it is now.

Modules come through Go's own commands, checked against go.sum or Go's checksum database. What is installed is kept in
`~/.cache/tunetrial-tools` or the folder that TUNETRIAL_TOOLS names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.real.environments import alone

GRPCURL = "v1.9.4"
_GO_DEFAULT = "/usr/local/go/bin"  # where Go's own installer puts it
_PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], _GO_DEFAULT))


def missing() -> str:
    """What this machine lacks, and what to do; empty when it lacks nothing."""
    if not shutil.which("go", path=_PATH):
        return "Go 1.26 or later is needed, on PATH or in /usr/local/go: https://go.dev/doc/install"
    return ""


def tools() -> Path:
    """The folder of what is installed once."""
    return Path(os.environ.get("TUNETRIAL_TOOLS") or Path.home() / ".cache" / "tunetrial-tools")


def grpcurl() -> Path:
    """The program, installed when it is not kept yet."""
    kept = tools() / f"grpcurl-{GRPCURL}" / "grpcurl"
    with alone("grpcurl"):
        if kept.exists():
            return kept
        run(tools(), "go", "install", f"github.com/fullstorydev/grpcurl/cmd/grpcurl@{GRPCURL}", GOBIN=str(kept.parent))
    return kept


def build(example: Path, root: Path, folder: Path) -> Path:
    """The Go program in `example`, built as its README says, from a copy in `folder` of it and the contract of `root`."""
    copy = folder / example.relative_to(root)
    shutil.copytree(example, copy, ignore=shutil.ignore_patterns("stubs"))
    shutil.copytree(root / "protos", folder / "protos", ignore=shutil.ignore_patterns("__pycache__", "*.py*"))
    run(copy, "buf", "generate")
    run(copy, "go", "vet", "./...")
    run(copy, "go", "build", "-mod=readonly", "-o", str(folder / "ask"), ".")
    return folder / "ask"


def pinned_in(text: str) -> list[str]:
    """Versions of grpcurl that a text tells its reader to install."""
    return re.findall(r"cmd/grpcurl@(v[\d.]+)", text)


def run(folder: Path, *command: str, timeout_s: float = 900, **environment: str) -> None:
    """Runs a command in a folder. Raises RuntimeError with what it said when it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": _PATH, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
