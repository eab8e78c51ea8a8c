"""The servers of a Kubernetes control plane, built from source once: no other way needs nothing but Go.

Versions are pinned in `go/*/go.mod` and checked against `go.sum`. What is built is kept in `~/.cache/tunetrial-tools` or the folder that
TUNETRIAL_TOOLS names, by version; a cold build takes about ten minutes on two cores. Another version is taken by `go get -tool` of its
packages in such a folder; k8s.io/kubernetes names no versions of its parts, so `replace` does.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.real import go_tools
from tests.real.environments import alone

MODULES = Path(__file__).with_name("go")
_BUILD_S = 3600.0
_NAMES = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    **{name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}") for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")},
}
"""Folder of the pinned module and package, by program."""


def missing() -> str:
    """What this machine lacks, and what to do; empty when it lacks nothing."""
    return go_tools.missing()


def version(module: str) -> str:
    """The pinned version of what a folder under `go` is for."""
    found = re.search(
        r"^(?:require|\t)\s*(?:go\.etcd\.io/etcd/server/v3|k8s\.io/kubernetes) (v[\d.]+)", (MODULES / module / "go.mod").read_text(), re.M
    )
    assert found is not None, f"go.mod of {module} pins nothing"
    return found[1]


def programs() -> dict[str, Path]:
    """All of them by name, built where they are not kept yet."""
    with alone("kubernetes"):
        return {name: _program(name, *where) for name, where in _NAMES.items()}


def _program(name: str, module: str, package: str) -> Path:
    kept = go_tools.tools() / f"{module}-{version(module)}" / name
    if kept.exists():
        return kept
    begun, half = time.monotonic(), kept.with_suffix(".half")
    print(f"building {name} {version(module)} ...", end=" ", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    build = ("go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", _ldflags(module), "-o", str(half), package)
    go_tools.run(MODULES / module, *build, timeout_s=_BUILD_S)
    # What was cut off while it was built is not taken for built.
    half.rename(kept)
    print(f"{time.monotonic() - begun:.0f} s", flush=True)
    return kept


def _ldflags(module: str) -> str:
    if module != "kubernetes":
        return "-s -w"
    number = version(module)
    major, minor, _ = number.removeprefix("v").split(".")
    # A server that does not know its version refuses to start.
    known = {"gitVersion": number, "gitMajor": major, "gitMinor": minor}
    return " ".join(("-s -w", *(f"-X k8s.io/component-base/version.{key}={value}" for key, value in known.items())))
