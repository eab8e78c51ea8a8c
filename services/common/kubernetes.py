"""The way to the API of Kubernetes: the connection, and what goes wrong on it. Knows no object of the cluster.

For services that are set to use a cluster; the others never import it, and need not have its library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes_asyncio import client, config

from services.common.errors import Unavailable

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Connection:
    """The API as the pod's own service account, or by KUBECONFIG. Needs to be closed."""

    def __init__(self, namespace: str) -> None:
        """Contacts nothing. An empty namespace means the own one of the pod that this is, "default" outside of a cluster."""
        self.namespace = namespace
        self._client: client.ApiClient | None = None
        self._opening = asyncio.Lock()

    async def client(self) -> client.ApiClient:
        """The library's client; `namespace` is known from then on. Raises ConfigException."""
        async with self._opening:
            if self._client is None:
                found = client.Configuration()
                found.connection_pool_maxsize = 0  # without limit: each log that is followed keeps one open
                own = _own_namespace(found)
                if own is None:
                    await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=found)
                self.namespace = self.namespace or own or "default"
                self._client = client.ApiClient(found)
            return self._client

    async def close(self) -> None:
        """Closes it."""
        if self._client is not None:
            await self._client.close()


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """What goes wrong on the way is Unavailable KUBERNETES_UNAVAILABLE. What the API answers stays an ApiException."""
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise away(f"{type(error).__name__}: {error}") from error


def away(why: str) -> Unavailable:
    """The error for an API that cannot answer now."""
    return Unavailable("KUBERNETES_UNAVAILABLE", "the Kubernetes API does not answer: {why}", why=why, retry_after_s=5)


def said(error: client.ApiException) -> str:
    """The API's own words."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error.body or "")["message"])[:500]
    return " ".join(str(error.body or error.reason).split())[:500]


def _own_namespace(configuration: client.Configuration) -> str | None:
    """The namespace of the pod that this is, whose service account is configured then; None outside of a cluster."""
    incluster: Any = config
    try:
        incluster.load_incluster_config(client_configuration=configuration)
        return _NAMESPACE.read_text(encoding="ascii").strip()
    except config.ConfigException:
        return None
