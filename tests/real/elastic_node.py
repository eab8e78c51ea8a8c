"""One real Elasticsearch on loopback: started, asked, paused, killed, and started again on the same port and data. Knows no retriever.

With security on it speaks TLS only, with a certificate of a CA made here, and knows one user; API keys are made by asking it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.real.elastic_release import Installed

USER, PASSWORD = "tester", "correct-horse-battery"
_NOBODY = "65534"
_START_S = 400.0
_SETTINGS: dict[str, object] = {
    "discovery.type": "single-node",
    "http.host": "127.0.0.1",
    "transport.host": "127.0.0.1",
    "cluster.routing.allocation.disk.threshold_enabled": "false",
    "indices.breaker.total.use_real_memory": "false",
}
_SECURITY: dict[str, object] = {
    "xpack.security.enabled": "true",
    "xpack.security.autoconfiguration.enabled": "false",
    "xpack.security.http.ssl.enabled": "true",
    "xpack.security.http.ssl.key": "http.key",
    "xpack.security.http.ssl.certificate": "http.crt",
}


@dataclass
class Node:
    """A server whose files are all under `folder`. `settings` go into its elasticsearch.yml."""

    installed: Installed
    folder: Path
    secured: bool
    settings: dict[str, object]
    port: int
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(cls, installed: Installed, folder: Path, *, secured: bool = False, **settings: object) -> Node:
        """A node that is configured and not running. In names of settings, `__` stands for a dot."""
        folder.mkdir()
        for name in ("data", "logs", "tmp"):
            (folder / name).mkdir()
        shutil.copytree(installed.home / "config", folder / "config")
        node = cls(installed, folder, secured, {name.replace("__", "."): value for name, value in settings.items()}, free_port())
        node._configure()
        return node

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http{'s' if self.secured else ''}://localhost:{self.port}"

    @property
    def ca(self) -> Path:
        """The CA of its certificate."""
        return self.folder / "config" / "ca.crt"

    def fingerprint(self, certificate: str) -> str:
        """sha256 of a certificate: `ca`, as the server prints it when it is first started, or `http`, its own."""
        pem = (self.folder / "config" / f"{certificate}.crt").read_text().partition("-----END CERTIFICATE-----")
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert("".join(pem[:2]))).hexdigest()

    def start(self) -> None:
        """Returns once it answers that its shards can be read; fails with the end of its log."""
        assert self._process is None, "it runs already"
        with (self.folder / "logs" / "console").open("ab") as console:
            command = (*self._prefix(), str(self.installed.home / "bin" / "elasticsearch"))
            self._process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while not self.healthy():
            assert self._process.poll() is None, f"Elasticsearch ended with code {self._process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"Elasticsearch did not answer in {_START_S:.0f} s:\n{self.log()}"
            time.sleep(0.2)

    def healthy(self) -> bool:
        """Whether it answers, with every index readable."""
        try:
            return self.ask("GET", "/_cluster/health?wait_for_status=yellow&timeout=1s").is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            # The launcher and the server that it started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It takes connections from now on and answers none, until `resume`."""
        assert self._process is not None, "it does not run"
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It answers again."""
        assert self._process is not None, "it does not run"
        os.killpg(self._process.pid, signal.SIGCONT)

    def ask(self, method: str, path: str, json: Any = None, lines: str | None = None) -> httpx.Response:
        """An answer of its REST API, asked as the user who may do everything. `lines` is a body of JSON lines."""
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(self.ca)) if self.secured else False
        with httpx.Client(auth=(USER, PASSWORD) if self.secured else None, verify=verify, timeout=60, trust_env=False) as client:
            if lines is None:
                return client.request(method, f"{self.url}{path}", json=json)
            return client.request(method, f"{self.url}{path}", content=lines, headers={"content-type": "application/x-ndjson"})

    def api_key(self, **role: object) -> str:
        """A new API key, as clients send it; with a role it may do that only."""
        roles = {"role_descriptors": {"test": role}} if role else {}
        answer = self.ask("POST", "/_security/api_key", {"name": "test", **roles})
        assert answer.is_success, answer.text
        encoded: str = answer.json()["encoded"]
        return encoded

    def client_settings(self, credentials: str = "password") -> dict[str, str]:
        """What a retriever must be told to use it, by the names of its settings. `credentials`, with security on: password or api-key."""
        if not self.secured:
            return {"urls": self.url}
        who = {"api_key": self.api_key()} if credentials == "api-key" else {"user": USER, "password": PASSWORD}
        return {"urls": self.url, "ca_file": str(self.ca), **who}

    def log(self) -> str:
        """The end of what it said."""
        console = self.folder / "logs" / "console"
        return console.read_text(errors="replace")[-4000:] if console.exists() else "it said nothing"

    def _configure(self) -> None:
        config = self.folder / "config"
        security = _SECURITY if self.secured else {"xpack.security.enabled": "false"}
        paths = {"http.port": self.port, "path.data": self.folder / "data", "path.logs": self.folder / "logs"}
        lines = (f"{name}: {value}" for name, value in {**_SETTINGS, **security, **paths, **self.settings}.items())
        (config / "elasticsearch.yml").write_text("\n".join(lines) + "\n")
        # The runtime of java.txt lacks this module; without it vectors are compared a little slower.
        options = (config / "jvm.options").read_text().splitlines(keepends=True)
        (config / "jvm.options").write_text("".join(line for line in options if "jdk.incubator.vector" not in line))
        if self.secured:
            make_certificates(config)
            command = (str(self.installed.home / "bin" / "elasticsearch-users"), "useradd", USER, "-p", PASSWORD, "-r", "superuser")
            subprocess.run(command, env=self._environment(), check=True, capture_output=True)
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, int(_NOBODY), int(_NOBODY))

    def _prefix(self) -> tuple[str, ...]:
        # A test run that is killed takes its servers with it; the server refuses to run as root.
        user = ("--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups") if os.geteuid() == 0 else ()
        return ("setpriv", *user, "--pdeathsig", "KILL")

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder / "tmp")
        return {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "TMPDIR": folder,
            "ES_TMPDIR": folder,
            "ES_PATH_CONF": str(self.folder / "config"),
            "ES_JAVA_HOME": str(self.installed.java_home),
            # Tests are short: code that is compiled quickly beats code that runs quickly.
            "ES_JAVA_OPTS": "-Xms512m -Xmx512m -XX:TieredStopAtLevel=1",
        }


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def make_certificates(folder: Path) -> None:
    """`ca.crt`, and `http.crt` (with the CA's behind it) and `http.key` for localhost."""

    def openssl(*arguments: str) -> None:
        subprocess.run(("openssl", *arguments), cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "rsa:2048", "-nodes")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("req", "-x509", *new, "-days", "2", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=CA of a test")
    openssl("req", *new, "-keyout", "http.key", "-out", "http.csr", "-subj", "/CN=localhost")
    sign = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "http.csr", "-out", "http.crt", *sign)
    with (folder / "http.crt").open("a") as chain:
        chain.write((folder / "ca.crt").read_text())
