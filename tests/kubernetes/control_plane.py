"""A real control plane on loopback: etcd, API server, controllers and scheduler. Nodes come from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kubernetes.binaries import programs

_READY_S = 120.0
_TOKEN = "admin-of-a-test"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"


class Api:
    """The API as somebody, in JSON values. Paths are whole."""

    def __init__(self, url: str, trust: ssl.SSLContext, token: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, verify=trust, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    async def get(self, path: str, **query: str) -> Any:
        """An object. Raises KeyError where it is not there."""
        return await self._ask("GET", path, params=query)

    async def items(self, path: str, **query: str) -> list[Any]:
        """A list's objects."""
        return list((await self.get(path, **query))["items"])

    async def create(self, path: str, given: Any) -> Any:
        """The object as it now is."""
        return await self._ask("POST", path, json=given)

    async def patch(self, path: str, change: Any, *, strategic: bool = False) -> Any:
        """The object with a change; a strategic one changes lists entry by entry."""
        return await self._ask("PATCH", path, content=json.dumps(change), headers={"Content-Type": _STRATEGIC if strategic else _MERGE})

    async def delete(self, path: str, **options: Any) -> None:
        """Begins to delete an object."""
        await self._ask("DELETE", path, content=json.dumps(options), headers={"Content-Type": "application/json"})

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        response = await self._client.request(method, path, **more)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise KeyError(path)
        assert response.is_success, f"{method} {path}: {response.text}"
        return response.json()


class ControlPlane:
    """Runs from entering to leaving. `folder` holds its state and logs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.admin: Api
        """Who may do everything."""

    @property
    def certificate(self) -> tuple[Path, Path]:
        """Certificate and key of the API server; good for any other server on loopback."""
        return self._folder / "certificates" / "apiserver.crt", self._folder / "certificates" / "apiserver.key"

    def kubeconfig(self, token: str, name: str) -> Path:
        """A file by which whoever has that token gets here."""
        cluster = {"server": self._url, "certificate-authority": str(self.certificate[0])}
        file = self._folder / f"{name}.kubeconfig"
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "it",
                    "clusters": [{"name": "it", "cluster": cluster}],
                    "users": [{"name": "it", "user": {"token": token}}],
                    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                }
            )
        )
        return file

    async def __aenter__(self) -> Self:
        built = await asyncio.to_thread(programs)
        store, peer, port = _free_ports(3)
        self._url = f"https://127.0.0.1:{port}"
        self._write_secrets()
        etcd = f"http://127.0.0.1:{store}"
        self._start(
            built["etcd"],
            *("--data-dir", str(self._folder / "etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}", "--unsafe-no-fsync"),
        )
        key = self._folder / "accounts.key"
        self._start(
            built["kube-apiserver"],
            *(f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={port}"),
            *(f"--cert-dir={self._folder / 'certificates'}", f"--token-auth-file={self._folder / 'tokens.csv'}"),
            *("--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://kubernetes.default.svc"),
            *(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"),
            *("--authorization-mode=Node,RBAC", "--kubelet-preferred-address-types=InternalIP"),
        )
        await self._ready()
        config = f"--kubeconfig={self.kubeconfig(_TOKEN, 'admin')}"
        alone = (config, "--leader-elect=false", "--secure-port=0")
        self._start(built["kube-controller-manager"], *alone, f"--service-account-private-key-file={key}")
        self._start(built["kube-scheduler"], *alone)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if hasattr(self, "admin"):
            await self.admin.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        shutil.rmtree(self._folder / "etcd", ignore_errors=True)

    def said(self, program: str) -> str:
        """The end of what a server wrote."""
        return (self._folder / f"{program}.txt").read_text(errors="replace")[-4000:]

    async def token(self, namespace: str, account: str) -> str:
        """A token of a service account."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        answer = await self.admin.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", request)
        return str(answer["status"]["token"])

    def _start(self, program: Path, *arguments: str) -> None:
        with (self._folder / f"{program.name}.txt").open("wb") as log:
            self._processes.append(subprocess.Popen((str(program), *arguments), cwd=self._folder, stdout=log, stderr=log))

    def _write_secrets(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = serialization.PrivateFormat.TraditionalOpenSSL
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        (self._folder / "accounts.key").write_bytes(pem)
        (self._folder / "tokens.csv").write_text(f"{_TOKEN},admin,1,system:masters\n")

    async def _ready(self) -> None:
        async with asyncio.timeout(_READY_S):
            while True:
                assert all(process.poll() is None for process in self._processes), self.said("etcd") + self.said("kube-apiserver")
                with contextlib.suppress(OSError, KeyError, httpx.TransportError, AssertionError):
                    if not hasattr(self, "admin"):
                        self.admin = Api(self._url, ssl.create_default_context(cafile=str(self.certificate[0])), _TOKEN)
                    # Not only that it answers: what belongs to every cluster is made a moment later.
                    await self.admin.get("/api/v1/namespaces/kube-node-lease")
                    return
                await asyncio.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports
